"""A model's ranges over images, by ONNX Runtime: every tensor's smallest and largest value is taken inside the graph, so
that a run hands out two numbers a tensor, and whole activations only of those that need a histogram."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from mtmamba.calib.calibration import Calibration, nodes_beyond_fp16
from mtmamba.calib.ranges import Ranges
from mtmamba.export.graph import element_counts, float_activations, fold_weights
from mtmamba.export.quantize import quantisable
from mtmamba.files import sha256
from mtmamba.metadata import INPUT_NAME
from mtmamba.runtime.emulation import Array, cpu_session
from mtmamba.runtime.onnx_model import OnnxModel

SAVE_EVERY_S = 20.0
DEFAULT_PERCENTILE = 99.99
ACTIVATION_BYTES = 512 << 20
"""Of activations that one run hands out; a model with more is run several times an image."""

_LOW, _HIGH = "mtmamba_low", "mtmamba_high"


class Observer:
    """Runs the FP32 `model` and notes its tensors' ranges. histograms: gather what percentile and entropy need, too.
    batch: the most images a run, where the model leaves it free."""

    def __init__(self, model: onnx.ModelProto, *, histograms: bool, batch: int = 1) -> None:
        folded = onnx.ModelProto()
        folded.CopyFrom(model)
        fold_weights(folded)
        names = float_activations(folded)
        nodes = {node.name: node for node in folded.graph.node}
        read = {nodes[node].input[activation] for node, (activation, _) in quantisable(folded).items()}
        self.ranges = Ranges(names, [name for name in names if histograms and name in read])
        fetched = [name for name in self.ranges.histograms if name != INPUT_NAME]
        self._groups = _groups(fetched, element_counts(folded, batch))
        self._session: Any = cpu_session(_observed(folded, names, fetched))

    def add(self, images: Array) -> None:
        """images: a batch [B, 3, H, W] as the model takes it. Raises MtmError where a tensor is not finite."""
        feeds = {INPUT_NAME: images}
        low, high, *values = self._session.run([_LOW, _HIGH, *self._groups[0]], feeds)
        found = {INPUT_NAME: images, **dict(zip(self._groups[0], values, strict=True))}
        self.ranges.add(low, high, found, len(images))
        for group in self._groups[1:]:
            self.ranges.add_values(dict(zip(group, self._session.run(group, feeds), strict=True)))


def _groups(names: Sequence[str], counts: dict[str, int]) -> list[list[str]]:
    """`names` in groups of at most `ACTIVATION_BYTES` of FP32 each, or of one tensor."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in names:
        bytes_ = 4 * counts.get(name, 0)
        if groups[-1] and size + bytes_ > ACTIVATION_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += bytes_
    return groups


def _observed(model: onnx.ModelProto, names: Sequence[str], fetched: Sequence[str]) -> onnx.ModelProto:
    """`model`, changed in place: with outputs for the smallest and the largest value of the tensors `names` ([n] each),
    and for the tensors `fetched`."""
    graph = model.graph
    graph.initializer.append(helper.make_tensor("mtmamba_one", TensorProto.INT64, [1], [1]))
    for output, kind in ((_LOW, "ReduceMin"), (_HIGH, "ReduceMax")):
        for name in names:
            graph.node.append(helper.make_node(kind, [name], [f"{name}/{kind}"], keepdims=0))
            graph.node.append(helper.make_node("Reshape", [f"{name}/{kind}", "mtmamba_one"], [f"{name}/{kind}_1"]))
        graph.node.append(helper.make_node("Concat", [f"{name}/{kind}_1" for name in names], [output], axis=0))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [len(names)]))
    present = {output.name for output in graph.output}
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in fetched if name not in present
    )
    return model


def calibrate(
    model: OnnxModel,
    batches: Iterable[Array],
    *,
    method: str,
    percentile: float = DEFAULT_PERCENTILE,
    sources: Sequence[str] = (),
    state: Path | None = None,
    on_images: Callable[[int], None] | None = None,
) -> Calibration:
    """The calibration of `model` over `batches`, normalised images [B, 3, H, W] float32.

    method: "max", "percentile" or "entropy". sources: what the images are, for people and to know the same work again.
    state: a file to put the work away in now and then, and when it is stopped; where it holds the beginning of the same
    work, that many images are passed over. It is removed at the end. on_images is told how many images are done.
    Raises MtmError for no image, and for a tensor that is not finite.
    """
    observer = Observer(model.proto, histograms=method != "max", batch=model.metadata.batch)
    ranges, digest = observer.ranges, sha256(model.path)
    key = {"onnx_sha256": digest, "sources": list(sources)}
    skip = ranges.images if state is not None and ranges.resume(state, key) else 0
    seen, saved = 0, time.monotonic()
    try:
        for batch in batches:
            seen += len(batch)
            if seen <= skip:
                continue
            observer.add(batch)
            if on_images:
                on_images(ranges.images)
            if state is not None and time.monotonic() - saved > SAVE_EVERY_S:
                ranges.save(state, key)
                saved = time.monotonic()
    except BaseException:
        if state is not None and ranges.images > skip:
            ranges.save(state, key)
        raise
    measured = Calibration(
        onnx=model.path.name,
        onnx_sha256=digest,
        method=method,
        percentile=percentile if method == "percentile" else None,
        images=ranges.images,
        sources=tuple(sources),
        versions={name: version(name) for name in ("mtmamba", "onnx", "onnxruntime")},
        ranges=ranges.result(method, percentile),
    )
    if state is not None:
        state.unlink(missing_ok=True)
    return with_fp16_plan(measured, model.proto)


def with_fp16_plan(calibration: Calibration, model: onnx.ModelProto) -> Calibration:
    """`calibration` with its fp16 plan as its ranges want it: nodes that could leave FP16 stay FP32."""
    return replace(calibration, kept={"fp16": nodes_beyond_fp16(model, calibration.ranges)})
