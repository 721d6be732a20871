"""The scan operators: one contract, several implementations.

`selective_scan` is the product's operator (a `torch.library` op with autograd); `selective_scan_reference` the float64
sequential loop every implementation is compared to; `selective_scan_2d` the four-direction scan of SS2D built on it.
"""

from mtmamba.ops.reference import selective_scan_2d_reference, selective_scan_reference
from mtmamba.ops.selective_scan import selective_scan
from mtmamba.ops.selective_scan_2d import selective_scan_2d

__all__ = ["selective_scan", "selective_scan_2d", "selective_scan_2d_reference", "selective_scan_reference"]
