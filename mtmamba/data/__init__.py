"""Datasets: what a sample is made of and where its labels count (`labels`), any dataset by name (`catalog`), views and
augmentation (`augment`), rendered rooms (`synthetic`).

`open_dataset` is handed out lazily: `labels` is imported where there is no torch.
"""

from typing import Any

__all__ = ["open_dataset"]


def __getattr__(name: str) -> Any:
    if name != "open_dataset":
        raise AttributeError(f"module 'mtmamba.data' has no attribute {name!r}")
    from mtmamba.data.catalog import open_dataset

    return open_dataset
