"""Which TensorRT is found, what it says, and the name its parser looks for."""

import ctypes
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mtmamba.errors import MtmError
from mtmamba.runtime import rtx_alias, trt
from mtmamba.runtime.trt import Messages, TensorRT


class FakeLogger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)


def fake_module(name: str, version: str) -> ModuleType:
    module = ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    module.ILogger = FakeLogger  # type: ignore[attr-defined]
    return module


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing remembered of what was imported before, and no TensorRT installed."""
    trt._import.cache_clear()
    for name in trt.MODULES.values():
        monkeypatch.setitem(sys.modules, name, None)
    yield monkeypatch
    trt._import.cache_clear()


def test_none_installed(fresh: pytest.MonkeyPatch) -> None:
    assert trt.installed() == ()
    with pytest.raises(MtmError, match=r"expected TensorRT, found none that works.*mtmamba\[gpu\].*mtmamba\[rtx\]"):
        trt.resolve()
    with pytest.raises(MtmError, match=r"tensorrt_rtx is not installed") as caught:
        trt.resolve("tensorrt-rtx")
    assert "mtmamba[gpu]" not in str(caught.value)


def test_unknown_flavour() -> None:
    with pytest.raises(MtmError, match="unknown TensorRT flavour 'rtx'; known: tensorrt, tensorrt-rtx"):
        trt.resolve("rtx")


def test_preference_and_choice(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(sys.modules, "tensorrt_rtx", fake_module("tensorrt_rtx", "1.7.1"))
    assert trt.resolve().flavour == "tensorrt-rtx"
    fresh.setitem(sys.modules, "tensorrt", fake_module("tensorrt", "10.7.0"))
    trt._import.cache_clear()
    assert (trt.resolve().flavour, trt.resolve().version) == ("tensorrt", "10.7.0")
    assert trt.resolve("tensorrt-rtx").version == "1.7.1"
    assert trt.installed() == ("tensorrt", "tensorrt-rtx")
    assert trt.resolve().targets == ()


def test_too_old(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(sys.modules, "tensorrt", fake_module("tensorrt", "8.6.1"))
    with pytest.raises(MtmError, match=r"tensorrt is 8\.6\.1, older than 10\.0"):
        trt.resolve("tensorrt")


def test_broken_installation(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    fresh.delitem(sys.modules, "tensorrt")
    fresh.syspath_prepend(str(tmp_path))
    with pytest.raises(MtmError, match=r"installed but cannot be imported \(libnvinfer\.so\.10"):
        trt.resolve("tensorrt")


def test_messages_are_logged_or_quoted(caplog: pytest.LogCaptureFixture) -> None:
    messages = Messages()
    caplog.set_level(logging.DEBUG, logger="mtmamba.tensorrt")
    messages.add(logging.ERROR, "outside")
    with messages.quoting() as outer, messages.quoting() as inner:
        messages.add(logging.WARNING, "harmless")
        messages.add(logging.ERROR, " inside\n")
    messages.add(logging.WARNING, "after")
    assert outer == inner == ["inside"]
    levels = [(record.message.strip(), record.levelname) for record in caplog.records]
    assert levels == [("outside", "ERROR"), ("harmless", "INFO"), ("inside", "INFO"), ("after", "WARNING")]


def test_quoted() -> None:
    assert trt.quoted([]) == "it gave no reason"
    assert trt.quoted([str(i) for i in range(9)], most=2) == "7; 8"


@pytest.mark.trt
def test_real_rtx(rtx: TensorRT) -> None:
    assert rtx.flavour == "tensorrt-rtx"
    assert {"sm_86", "sm_89", "sm_120"} <= set(rtx.targets)
    with rtx.messages.quoting() as errors:
        rtx.logger.log(rtx.module.ILogger.Severity.ERROR, "so it goes")
        rtx.logger.log(rtx.module.ILogger.Severity.VERBOSE, "dropped")
    assert errors == ["so it goes"]


@pytest.mark.trt
def test_alias_answers_by_name(rtx: TensorRT) -> None:
    rtx.prepare_parser()
    found = ctypes.CDLL(rtx_alias.NAME)
    assert found.getInferLibVersion() > 0


@pytest.mark.trt
def test_alias_without_a_compiler(rtx: TensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rtx_alias.shutil, "which", lambda name: None)
    with pytest.raises(MtmError, match=r"no C compiler.*apt install gcc.*ln -s .*libtensorrt_rtx\.so"):
        rtx_alias._compile(rtx_alias._loaded_library(), tmp_path / rtx_alias.NAME)


@pytest.mark.trt
def test_alias_with_a_broken_compiler(rtx: TensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\necho no space left >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(MtmError, match="could not make libtensorrt_rtx.so: no space left"):
        rtx_alias._compile(rtx_alias._loaded_library(), tmp_path / rtx_alias.NAME)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cc"]
