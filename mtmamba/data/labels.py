"""The form of labels, one for every dataset, and which of their pixels count. Imports neither torch nor a dataset.

A sample is a dict: `image` [3, h, w] float32 (RGB in 0..1, minus the ImageNet mean, over its deviation), and for
every task a label at the output's size, H = output_scale * h and W = output_scale * w (2 for Cityscapes, else 1;
`mtmamba.tasks.Dataset`)

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
negates the normals' x. `synthetic` follows this; `nyudv2` and `pascal-context` keep the signs of their files, which
published checkpoints predict and which may differ (docs/datasets.md): x, and so the mirroring rule, is along the
image's rows in all of them.

Padding: where a picture does not fill the sample, `image` is 0 and every label is `ignored_value`, so a prediction at
the sample's size is scored as it is, with no cropping: padded pixels count in nothing. A metric that needs the
picture's own size (a boundary tolerance is a share of the diagonal) takes `picture_box`.
"""

from typing import Any

import numpy as np

from mtmamba.errors import MtmError
from mtmamba.tasks import IGNORE_LABEL, Kind

DEPTH_INVALID = 0.0


def ignored_value(kind: Kind) -> float:
    """The value, of every channel, that marks a pixel of this kind of label as not counting."""
    return float(IGNORE_LABEL) if kind in ("labels", "saliency", "boundary") else DEPTH_INVALID


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


def as_prediction(kind: Kind, label: Any) -> tuple[Any, Any]:
    """(the label in the form that `mtmamba.postprocess` gives predictions in, its mask [H, W] of pixels that count); 0
    where a pixel does not count. label: NumPy array [H, W] for the kinds `labels` and `saliency`, else [channels, H, W].
    """
    valid = valid_pixels(kind, label[None])[0]
    values = np.where(valid, label, 0)
    if kind == "labels":
        return values.astype(np.uint8), valid
    if kind == "normals":
        values = values.transpose(1, 2, 0)
    elif kind in ("depth", "boundary"):
        values = values[0]
    return np.ascontiguousarray(values, np.float32), valid


def picture_box(boundary: Any) -> tuple[int, int, int, int]:
    """(top, left, bottom, right), the last two exclusive, of the picture inside its padding, from the one label that
    counts at every pixel of a picture: a boundary label [1, H, W], NumPy array or torch tensor. All 0 where nothing
    counts."""
    inside = boundary[0] != IGNORE_LABEL
    rows, columns = ([index for index, some in enumerate(inside.any(axis).tolist()) if some] for axis in (1, 0))
    return (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if rows else (0, 0, 0, 0)
