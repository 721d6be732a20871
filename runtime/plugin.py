"""The plugin library inside TensorRT: which file it is, loading it, and the proof that its plugins are really there."""

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtmamba.errors import MtmError
from mtmamba.files import existing_file
from mtmamba.runtime.plugin_build import OnStep, build_library
from mtmamba.runtime.trt import TensorRT

NAMESPACE = "mtmamba"
"""Of the plugins, and the domain of the ONNX nodes that they replace."""
BUILD_AGAIN = "name another with --plugin, or leave --plugin away to have it built"

_LEVELS = (logging.ERROR, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)  # by ILogger::Severity
_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.c_char_p)


@dataclass(frozen=True, kw_only=True)
class PluginLibrary:
    """A library that is loaded. ops: names of the ONNX operators it has plugins for. hash: SHA-256 over the sources it
    was built from, the same whichever compiler built it."""

    path: Path
    hash: str
    ops: frozenset[str]


_loaded: dict[str, tuple[PluginLibrary, Callable[..., Any]]] = {}
"""By flavour: TensorRT registers a plugin once in a process. The callback is kept alive with it."""


def load_plugins(trt: TensorRT, library: Path | None = None, on_step: OnStep | None = None) -> PluginLibrary:
    """Load `library` (None: the one for this machine, built on first need) into TensorRT's registry.

    on_step: progress of a build. Loading the same library again is free. Raises MtmError for a file that is missing, no
    library, or no mtmamba plugin library, for a failing build, and where another one is loaded in this process already.
    """
    path = existing_file(library, "plugin library") if library else build_library(on_step)
    path = path.resolve()
    handle = _open(path)
    plugin_hash = handle.mtmambaPluginHash().decode()
    if trt.flavour in _loaded:
        loaded, _ = _loaded[trt.flavour]
        if loaded.hash != plugin_hash:
            raise MtmError(f"{path}: another plugin library ({loaded.path}) is loaded in this process; start a new one")
        return loaded
    callback = _LogCallback(lambda severity, text: trt.messages.add(_level(severity), text.decode(errors="replace")))
    handle.mtmambaSetLogCallback(callback)
    ops = _register(trt, path)
    result = PluginLibrary(path=path, hash=plugin_hash, ops=ops)
    _loaded[trt.flavour] = (result, callback)
    return result


def _level(severity: int) -> int:
    return _LEVELS[severity] if 0 <= severity < len(_LEVELS) else logging.DEBUG


def _open(path: Path) -> ctypes.CDLL:
    """Open the library and look for what only ours exports."""
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise MtmError(
            f"{path}: expected the mtmamba plugin library, found a file that cannot be loaded ({error}); {BUILD_AGAIN}"
        ) from error
    for symbol in ("getCreators", "mtmambaPluginHash", "mtmambaSetLogCallback"):
        if not hasattr(handle, symbol):
            raise MtmError(f"{path}: expected the mtmamba plugin library, found one without {symbol}; {BUILD_AGAIN}")
    handle.mtmambaPluginHash.restype = ctypes.c_char_p
    handle.mtmambaSetLogCallback.restype = None
    return handle


def _register(trt: TensorRT, path: Path) -> frozenset[str]:
    registry = trt.module.get_plugin_registry()
    with trt.messages.quoting() as errors:
        registry.load_library(str(path))  # its answer says nothing in RTX 1.7: ask for the creators instead
    ops = frozenset(c.name for c in registry.all_creators if c.plugin_namespace == NAMESPACE)
    if not ops:
        reasons = f" ({'; '.join(errors)})" if errors else ""
        raise MtmError(f"{path}: TensorRT {trt.version} registered no plugin from it{reasons}; {BUILD_AGAIN}")
    return ops
