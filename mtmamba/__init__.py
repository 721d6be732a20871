"""MTMamba: multi-task dense prediction with a Swin encoder and Mamba decoders (ECCV 2024), made deployable.

The names below are handed out lazily (PEP 562), so that a deployment machine without torch can import
``mtmamba.runtime`` and everything else that needs no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "MtmError": "mtmamba.errors",
    "ModelConfig": "mtmamba.config",
    "preset": "mtmamba.config",
    "MTMamba": "mtmamba.model",
    "load_checkpoint": "mtmamba.checkpoint",
    "save_checkpoint": "mtmamba.checkpoint",
    "selective_scan": "mtmamba.ops",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mtmamba' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
