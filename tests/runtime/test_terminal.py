"""The commands on a real terminal: help that fits and has an example, errors of one line, progress there and nowhere else."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import COMMANDS

COLUMNS, WIDEST = 200, 110  # of the terminal, and of the help on it
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CHILD = """
import sys
from {module} import {attribute} as main
for arguments in {calls!r}:
    try:
        main(arguments, prog_name={name!r})
    except SystemExit as stop:
        print(f"<{{stop.code}}>", flush=True)
"""
UNUSABLE: dict[str, list[str]] = {
    "mtm-export": ["--ckpt", "gone.pth"],
    "mtm-build-engine": ["gone.onnx"],
    "mtm-run": ["gone.mp4"],
    "mtm-train": ["--data", "nyudv2", "--root", "gone"],
    "mtm-data": ["check", "nyudv2", "gone"],
    "mtm-eval": ["gone.onnx", "--data", "synthetic"],
    "mtm-parity": ["--model", "gone.onnx", "--reference", "gone.pth"],
    "mtm-bench": ["gone.onnx"],
    "mtm-serve-repo": ["gone.onnx"],
    "mtm-info": ["--ckpt", "gone.pth"],
    "mtm-report": ["gone.onnx"],
    "mtm-calibrate": ["gone", "--onnx", "gone.onnx"],
    "mtm-sensitivity": ["gone", "--onnx", "gone.onnx"],
}
"""Arguments that name a file that is not there. A command that is not listed is new: it is called without any in an empty
folder."""
CANNOT_FAIL = ("mtm-doctor", "mtm-cache")  # they report what there is


def on_terminal(command: list[str], folder: Path) -> str:
    """What a program writes on a terminal of `COLUMNS` columns; both streams, as a person sees them."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, cwd=folder, env=environment)
    os.close(follower)
    seen = b""
    try:
        while chunk := os.read(leader, 65536):
            seen += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(leader)
        process.wait(timeout=120)
    return seen.decode().replace("\r\n", "\n")


def child(name: str, *calls: list[str]) -> list[str]:
    """The command line of a Python that runs a command with several arguments, one after the other."""
    module, _, attribute = COMMANDS[name].partition(":")
    return [sys.executable, "-c", CHILD.format(module=module, attribute=attribute, calls=list(calls), name=name)]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_errors(name: str, tmp_path: Path) -> None:
    calls = [["-h"], ["--no-such-option"], UNUSABLE.get(name, [])]
    seen = on_terminal(child(name, *(calls[:2] if name in CANNOT_FAIL else calls)), tmp_path)
    parts = re.split(r"<(\d+)>\n", seen)
    texts, statuses = parts[0::2], parts[1::2]
    assert statuses == ["0", "2", "1"][: len(statuses)] and len(statuses) >= 2, seen
    help_text, bad_option = texts[:2]
    _is_good_help(name, help_text)
    assert re.match(r"Error: No such option:? '?--no-such-option", bad_option.splitlines()[-1]), bad_option
    if len(statuses) == 3:
        lines = texts[2].splitlines()
        if name == "mtm-train":  # which opens its data with its bar already there
            lines = [line for line in ESCAPE.sub("", texts[2]).splitlines() if line.strip() and "━" not in line]
        assert len(lines) == 1 and lines[0].startswith("error: "), texts[2]
        assert "gone" in lines[0] or name == "mtm-build-engine", "which first looks for a GPU to build for"
    assert list(tmp_path.iterdir()) == []


def _is_good_help(name: str, text: str) -> None:
    lines = text.splitlines()
    assert lines[0].startswith(f"Usage: {name}")
    assert [line for line in lines if len(line) > WIDEST] == []
    assert text.isascii() and "-h, --help" in text and "--json" in text or name == "mtm-data"
    assert re.search(rf"Examples?: {name} ?", text), text
    options = re.split(r"^Options:$", text, flags=re.MULTILINE)[1]
    undescribed = [line for line in options.splitlines() if re.match(r"  -\S+(, --\S+)?( [A-Z\[\]|.=,:<>-]+)?$", line)]
    following = {line: options.splitlines()[index + 1 : index + 2] for index, line in enumerate(options.splitlines())}
    assert [line for line in undescribed if not (following[line] and following[line][0].startswith("      "))] == []


BUSY: dict[str, list[str]] = {
    "mtm-bench": ["toy.onnx", "--calls", "3", "--rounds", "1"],
    "mtm-parity": ["--model", "toy.onnx", "--reference", "toy.onnx", "--images", "2"],
    "mtm-run": ["picture.png", "--model", "toy.onnx", "-o", "out.png"],
    "mtm-eval": ["toy.onnx", "--data", "synthetic", "--limit", "2", "--edge-thresholds", "0"],
    "mtm-report": ["toy.onnx", "--calls", "2", "--source", "picture.png"],
    "mtm-data": ["check", "synthetic", "--samples", "2", "--split", "val"],
}
"""What takes a moment. The bars of mtm-train, mtm-export and mtm-build-engine are the same, their work takes too long."""

TWICE = """
import os
import sys
from {module} import {attribute} as main

def call():
    try:
        main({arguments!r}, prog_name={name!r})
    except SystemExit as stop:
        print(f"<{{stop.code}}>", flush=True)

if __name__ == "__main__":
    call()
    for stream, name in ((sys.stdout, "out.txt"), (sys.stderr, "err.txt")):
        stream.flush()
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), stream.fileno())
    call()
"""


@pytest.mark.parametrize("name", BUSY)
def test_progress_is_for_terminals(name: str, toy_onnx: Path) -> None:
    """A bar that is redrawn and ends full on a terminal; in a file not a byte of it, and nothing on stderr."""
    folder = toy_onnx.parent
    cv2.imwrite(str(folder / "picture.png"), np.full((60, 90, 3), 90, np.uint8))
    module, _, attribute = COMMANDS[name].partition(":")
    code = TWICE.format(module=module, attribute=attribute, name=name, arguments=BUSY[name])
    seen = on_terminal([sys.executable, "-c", code], folder)
    assert seen.endswith("<0>\n"), seen
    assert "\x1b[" in seen and re.search(r"━+.* (\d+)/\1 .*\d:\d\d:\d\d", ESCAPE.sub("", seen)), seen
    said, errors = (folder / "out.txt").read_text(), (folder / "err.txt").read_text()
    assert errors == "" and said.endswith("<0>\n") and not re.search("\x1b|━|\r", said), said + errors
