"""The form of labels, one for every dataset, and which of their pixels count. Imports neither torch nor a dataset.

A sample is a dict: `image` [3, H, W] float32 (RGB in 0..1, minus the ImageNet mean, over its deviation), and for
every task

=========== ================== ======================================================= ===================
kind        label              values                                                  does not count
=========== ================== ======================================================= ===================
labels      [H, W] uint8       class index                                             255
saliency    [H, W] uint8       0 or 1                                                  255
depth       [1, H, W] float32  metres along the optical axis (or disparity in pixels)  0 or less, or inf
normals     [3, H, W] float32  unit vectors                                            the zero vector
boundary    [1, H, W] float32  0..1                                                    255
=========== ================== ======================================================= ===================

Camera coordinates are x right, y down, z forward (away from the camera), one right-handed frame for back-projected
points and normals: a point is depth * ((u - cx) / f, (v - cy) / f, 1), and a visible surface's normal points back at
the camera, so it has a negative z where it faces the camera and a negative y on the floor. Mirroring the image
negates the normals' x.
"""

from typing import Any

from mtmamba.errors import MtmError
from mtmamba.tasks import IGNORE_LABEL, Kind

DEPTH_INVALID = 0.0


def valid_pixels(kind: Kind, label: Any) -> Any:
    """The mask, bool [B, H, W], of a batch of labels' pixels that count; NumPy array or torch tensor in, the same out.

    label: [B, H, W] for the kinds `labels` and `saliency`, else [B, channels, H, W]. Raises MtmError for an unknown
    kind.
    """
    if kind in ("labels", "saliency"):
        return label != IGNORE_LABEL
    if kind == "depth":
        return (label[:, 0] > DEPTH_INVALID) & (label[:, 0] < float("inf"))
    if kind == "normals":
        return (label != 0).any(1)
    if kind == "boundary":
        return label[:, 0] != IGNORE_LABEL
    raise MtmError(f"unknown kind of task {kind!r}; known: labels, saliency, depth, normals, boundary")
