"""TensorRT, whichever flavour is installed. The one module that imports `tensorrt` or `tensorrt_rtx`.

`tensorrt` (10.x, 11.x) and `tensorrt_rtx` (TensorRT for RTX) share their names; `resolve` answers with one of them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from mtmamba.errors import MtmError
from mtmamba.runtime.rtx_alias import provide_unversioned_name

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
FLAVOURS = tuple(MODULES)
"""In the order of preference."""
INSTALL = {"tensorrt": "pip install 'mtmamba[gpu]'", "tensorrt-rtx": "pip install 'mtmamba[rtx]'"}
OLDEST_MAJOR = 10  # of the full TensorRT: the first with IPluginV3

log = logging.getLogger("mtmamba.tensorrt")


class Messages:
    """What TensorRT says. Outside a `quoting` block warnings and errors go to the log as such; inside one its errors
    are kept for the caller, who raises a sentence of its own, and the log gets them at INFO."""

    def __init__(self) -> None:
        self._kept: list[list[str]] = []

    def add(self, level: int, text: str) -> None:
        """level: of the `logging` module."""
        if level >= logging.ERROR:
            for kept in self._kept:
                kept.append(text.strip())
        log.log(min(level, logging.INFO) if self._kept else level, "%s", text)

    @contextmanager
    def quoting(self) -> Iterator[list[str]]:
        kept: list[str] = []
        self._kept.append(kept)
        try:
            yield kept
        finally:
            self._kept = [other for other in self._kept if other is not kept]


@dataclass(frozen=True, kw_only=True)
class TensorRT:
    """One flavour, ready for use.

    module: `tensorrt` or `tensorrt_rtx`. logger: the ILogger for every object made with it (TensorRT keeps the first it
    was given for the whole process). messages: what that logger heard.
    """

    flavour: str
    module: Any
    logger: Any
    messages: Messages = field(repr=False)

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def targets(self) -> tuple[str, ...]:
        """GPU architectures it can build for without a GPU, such as "sm_89"; () where it needs the GPU itself."""
        enumeration = getattr(self.module, "ComputeCapability", None)
        names = list(getattr(enumeration, "__members__", {}))
        return tuple(f"sm_{name[2:]}" for name in names if name.startswith("SM"))

    def prepare_parser(self) -> None:
        """Call before an ONNX file with plugins is parsed. Raises MtmError where that would end the process."""
        if self.flavour == "tensorrt-rtx":
            provide_unversioned_name()


def quoted(errors: list[str], most: int = 6) -> str:
    """TensorRT's last errors as the end of a sentence; "it gave no reason" where it said nothing."""
    return "; ".join(errors[-most:]) if errors else "it gave no reason"


def installed() -> tuple[str, ...]:
    """The flavours that can be imported, in the order of preference."""
    return tuple(flavour for flavour in FLAVOURS if isinstance(_import(flavour), TensorRT))


def resolve(flavour: str | None = None) -> TensorRT:
    """The TensorRT named `flavour` ("tensorrt" or "tensorrt-rtx"), or the first of these that is installed.

    Raises MtmError for an unknown flavour and where none can be used: not installed, broken, or too old.
    """
    if flavour is not None and flavour not in MODULES:
        raise MtmError(f"unknown TensorRT flavour {flavour!r}; known: {', '.join(FLAVOURS)}")
    wanted = (flavour,) if flavour else FLAVOURS
    problems = []
    for name in wanted:
        found = _import(name)
        if isinstance(found, TensorRT):
            return found
        problems.append(found)
    ways = " or ".join(f"{INSTALL[name]} ({name})" for name in wanted)
    raise MtmError(f"expected TensorRT, found none that works: {'; '.join(problems)}. Install it with {ways}")


@cache
def _import(flavour: str) -> TensorRT | str:
    """The flavour, or a few words on why there is none."""
    name = MODULES[flavour]
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        return f"{name} is not installed" if missing.split(".")[0] == name else f"{name} needs {missing}, not installed"
    except (ImportError, OSError, RuntimeError) as error:
        return f"{name} is installed but cannot be imported ({error})"
    major = int(str(module.__version__).split(".")[0])
    if flavour == "tensorrt" and major < OLDEST_MAJOR:
        return f"{name} is {module.__version__}, older than {OLDEST_MAJOR}.0"
    messages = Messages()
    return TensorRT(flavour=flavour, module=module, logger=_make_logger(module, messages), messages=messages)


def _make_logger(module: Any, messages: Messages) -> Any:
    severity = module.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,
    }

    class Logger(module.ILogger):
        """Hands TensorRT's messages on. Verbose ones are dropped: there are thousands."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in levels:
                messages.add(levels[severity], message)

    return Logger()
