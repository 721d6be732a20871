"""Engines, backends, video, drawing: what runs a model where it is deployed. Needs no torch.

    from mtmamba.runtime import load
    with load("best.engine") as model:
        depth = model(image).depth

Names are handed out lazily (PEP 562): importing this package imports nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtmamba.runtime.api import Model, Predictions, load
    from mtmamba.runtime.device_array import DeviceArray

__all__ = ["DeviceArray", "Model", "Predictions", "load"]

_HOMES = {
    "DeviceArray": "mtmamba.runtime.device_array",
    "Model": "mtmamba.runtime.api",
    "Predictions": "mtmamba.runtime.api",
    "load": "mtmamba.runtime.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
