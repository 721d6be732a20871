"""What every command shares: one sentence for any failure, one JSON object, a clean stop; and files that must not be lost."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from mtmamba.config import ModelConfig, preset
from mtmamba.console import TRACEBACK_SWITCH, CheckFailedError, command
from mtmamba.errors import MtmError
from mtmamba.files import check_output
from mtmamba.metadata import ModelMetadata


@command(epilog="Example: none")
def broken():
    return {"x": 1 / 0}


def test_an_unexpected_error_is_one_sentence_and_status_1(monkeypatch):
    monkeypatch.delenv(TRACEBACK_SWITCH, raising=False)
    result = CliRunner().invoke(broken, [])
    assert result.exit_code == 1 and result.stdout == ""
    assert "unexpected ZeroDivisionError" in result.stderr and len(result.stderr.strip().splitlines()) == 1
    result = CliRunner().invoke(broken, ["--json"])
    assert result.exit_code == 1 and "ZeroDivisionError" in json.loads(result.stdout)["error"]


def test_the_traceback_is_there_on_request(monkeypatch):
    monkeypatch.setenv(TRACEBACK_SWITCH, "1")
    assert isinstance(CliRunner().invoke(broken, []).exception, ZeroDivisionError)


WAITING = """
import sys, time
from pathlib import Path
from mtmamba.console import command
from mtmamba.files import atomic_path

@command(epilog="none")
def main():
    with atomic_path(Path(sys.argv[2])) as temporary:
        temporary.write_text("half")
        print("ready", file=sys.stderr, flush=True)
        time.sleep(60)
    return {}

main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_command_leaves_nothing_behind(tmp_path, number):
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("the tests run under nohup, and so would the command")
    arguments = [sys.executable, "-c", WAITING.replace("sys.argv[2]", repr(str(tmp_path / "out.bin"))), "--json"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline().strip() == "ready"
    time.sleep(0.1)
    os.kill(process.pid, number)
    stdout, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert json.loads(stdout) == {"error": "interrupted"}
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_comes_twice_counts_once(tmp_path):
    """timeout sends it to the process and to its group."""
    steps = ["try:", "    time.sleep(60)", "finally:", "    time.sleep(0.3)", "    sys.stderr.write('ended ')"]
    ending = "\n        ".join(steps)
    slow = WAITING.replace("time.sleep(60)", ending)
    code = slow.replace("sys.argv[2]", repr(str(tmp_path / "out.bin")))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline().strip() == "ready"
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=20)[1].startswith("ended interrupted")
    assert process.returncode == 130 and list(tmp_path.iterdir()) == []


def test_an_output_that_would_destroy_the_input(tmp_path):
    path, link = tmp_path / "best.onnx", tmp_path / "link.onnx"
    path.write_text("x")
    os.link(path, link)
    for output in (path, link):
        with pytest.raises(MtmError, match="the output is the input itself"):
            check_output(output, suffix=".onnx", inputs=(path,))
    with pytest.raises(MtmError, match="ending in .onnx"):
        check_output(tmp_path / "best.pth", suffix=".onnx")
    with pytest.raises(MtmError, match="found a folder"):
        check_output(tmp_path, suffix=".onnx")
    with pytest.raises(MtmError, match="cannot write into"):
        check_output(path / "below.onnx", suffix=".onnx")


@pytest.mark.parametrize(
    "changes",
    [
        {"depths": ["a"] * 4},
        {"tasks": None},
        {"d_state": 1.5},
        {"drop_path_encoder": "x"},
        {"drop_path_decoder": 5.0},
        {"depths": [-1, 0, 0, 0]},
        {"depths": [10**7, 1, 1, 1]},
        {"embed_dim": 10**7},
        {"input_size": 5},
    ],
    ids=str,
)
def test_damaged_configurations(changes):
    with pytest.raises(MtmError):
        ModelConfig.from_dict({**preset("nyudv2", "nano").to_dict(), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"input_size": None},
        {"input_size": ["a", "b"]},
        {"input_size": [0, 0]},
        {"batch": None},
        {"mean": "x"},
        {"std": {}},
        {"std": [0, 1, 1]},
    ],
    ids=str,
)
def test_damaged_metadata(changes):
    config = preset("nyudv2", "nano")
    good = ModelMetadata(config=config, input_size=(64, 96), batch=1, versions={})
    assert ModelMetadata.from_dict(good.to_dict(), "x.onnx") == good
    with pytest.raises(MtmError, match="x.onnx"):
        ModelMetadata.from_dict({**good.to_dict(), **changes}, "x.onnx")


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("nyudv2", "nano").embed_dim = 3


TALKING = """
from mtmamba.console import command, say

@command(epilog="none")
def main():
    say("a line")
    return {"answer": 1}

main()
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_full_disk_behind_stdout_is_one_sentence(arguments):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        run = [sys.executable, "-c", TALKING, *arguments]
        result = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == (
        "error: standard output: writing the result failed (No space left on device); free space, or send it elsewhere\n"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110
def test_nothing_but_the_sentence_when_a_failure_cannot_be_written_either():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        run = [sys.executable, "-c", TALKING.replace('say("a line")', "raise ValueError"), "--json"]
        result = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1 and result.stderr.startswith("error: standard output: writing the result failed")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_reader_that_has_gone_hears_nothing(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    run = [sys.executable, "-c", TALKING, *arguments]
    result = subprocess.run(run, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


def test_a_failed_check_keeps_its_figures():
    @command(epilog="none")
    def check():
        raise CheckFailedError("depth is 3 apart, allowed 2", {"depth": 3})

    result = CliRunner().invoke(check, ["--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"depth": 3, "error": "depth is 3 apart, allowed 2"}
    result = CliRunner().invoke(check, [])
    assert (result.exit_code, result.stderr) == (1, "error: depth is 3 apart, allowed 2\n")
