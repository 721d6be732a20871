"""A checkpoint file to a checked ONNX file: what `mtm-export` does, and `mtm-run` where it is given a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from mtmamba.checkpoint import load_checkpoint
from mtmamba.export.contract import count_nodes
from mtmamba.export.picture_io import with_picture_io
from mtmamba.export.torch_to_onnx import DEFAULT_OPSET, Batch, export_model
from mtmamba.export.verify import TaskDifference, compare, require_equal
from mtmamba.files import atomic_path, sha256

STEPS = ("reading the checkpoint", "exporting", "checking against PyTorch", "writing")

OnStep = Callable[[int], None]
"""Called with the index of the step that begins."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """input_size: (height, width). nodes: of the graph; scan_nodes: those of our operators among them."""

    input_size: tuple[int, int]
    nodes: int
    scan_nodes: int
    differences: list[TaskDifference]


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    input_size: tuple[int, int] | None = None,
    batch: Batch = 1,
    opset: int = DEFAULT_OPSET,
    check_images: int = 2,
    picture_io: bool = False,
    on_step: OnStep = lambda step: None,
) -> Exported:
    """Write `output` whole or not at all, once ONNX Runtime has answered as PyTorch does on `check_images` batches, of a range
    of batches on as many of the smallest and of the largest.

    picture_io: put preprocessing and postprocessing into the graph, after that check (`mtmamba.export.picture_io`).
    Raises MtmError for a checkpoint that cannot be read, options that cannot be, and where the two differ.
    """
    on_step(0)
    model = load_checkpoint(checkpoint)
    on_step(1)
    proto = export_model(model, input_size=input_size, batch=batch, opset=opset, checkpoint_sha256=sha256(checkpoint))
    on_step(2)
    with atomic_path(output) as temporary:
        onnx.save(proto, temporary)
        differences = compare(model, temporary, images=check_images)
        require_equal(differences)
        on_step(3)
        if picture_io:
            proto = with_picture_io(proto, str(checkpoint))
            onnx.checker.check_model(proto)
            onnx.save(proto, temporary)
    return Exported(
        input_size=input_size or model.config.input_size,
        nodes=len(proto.graph.node),
        scan_nodes=count_nodes(proto),
        differences=differences,
    )
