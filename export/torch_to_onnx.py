"""An MTMamba model, or any module with our operators -> an ONNX model: operator nodes of domain `mtmamba`, their bodies in the
file, and our metadata."""

import ast
import logging
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata as packages
from typing import Any

import onnx
import onnx_ir.passes.common as ir_passes
import onnxscript
import torch
from onnx import ModelProto, helper
from onnxscript import optimizer
from torch import Tensor, nn
from torch.export import Dim

import mtmamba.ops  # noqa: F401  registers torch.ops.mtmamba
from mtmamba.errors import MtmError
from mtmamba.export.contract import DOMAIN, DOMAIN_VERSION, SOFTPLUS_ATTRIBUTE, register_schemas
from mtmamba.export.function_body import functions
from mtmamba.export.metadata import write_metadata
from mtmamba.metadata import BATCH_NAME, INPUT_NAME, ModelMetadata
from mtmamba.model import MTMamba

OPSETS = (18, 23)
"""First and last opset that are supported: 18 is the exporter's lowest, 20 has Gelu as one node."""
DEFAULT_OPSET = 20
Batch = int | tuple[int, int]
"""Images a run: a number, or the fewest and the most where it is to stay free."""
FOLD_LIMIT = 1 << 31  # elements: fold every constant, weights' transposes and -exp(A_log) among them


def export_model(
    model: MTMamba,
    *,
    input_size: tuple[int, int] | None = None,
    batch: Batch = 1,
    opset: int = DEFAULT_OPSET,
    checkpoint_sha256: str = "",
) -> ModelProto:
    """Export `model` for images [batch, 3, H, W] of `input_size` (height, width; default: the configuration's). Of a range
    of batches the first dimension of the input and of every output is free.

    The result is checked by `onnx.checker`, not yet against PyTorch (`mtmamba.export.verify`).
    Raises MtmError for an opset, size or batch that cannot be.
    """
    height, width = input_size or model.config.input_size
    least, most = (batch, batch) if isinstance(batch, int) else batch
    if min(height, width, least) < 1 or most < least:
        raise MtmError(
            f"expected a size of at least 1 and a batch of at least 1, or a range of them from the smallest to the largest, "
            f"found {height}x{width} and batch {batch}"
        )
    proto = export_module(
        model,
        (torch.zeros(most, 3, height, width),),
        input_names=(INPUT_NAME,),
        output_names=model.config.tasks,
        opset=opset,
        min_batch=least,
    )
    write_metadata(
        proto,
        ModelMetadata(
            config=model.config,
            input_size=(height, width),
            batch=most,
            versions=versions(),
            checkpoint_sha256=checkpoint_sha256,
            min_batch=least if least < most else None,
        ),
    )
    return proto


def export_module(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int = DEFAULT_OPSET,
    bodies: bool = True,
    min_batch: int | None = None,
) -> ModelProto:
    """Export any module that uses `mtmamba.ops`, for inputs of these shapes and dtypes.

    min_batch: leave the first dimension of every input free (named `batch`), from this to its length in `inputs`.
    Its scans become nodes of domain `mtmamba`. bodies: the file holds a body of standard operators for each, so that any ONNX
    runtime runs it; without them it runs where there is the plugin alone (TensorRT for RTX would take a body before a
    plugin). The result is checked by `onnx.checker`. Raises MtmError for an opset that is not supported.
    """
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise MtmError(f"opset {opset} is not supported; choose one of {OPSETS[0]} to {OPSETS[1]} with --opset")
    register_schemas()
    batch = inputs[0].shape[0]
    free = min_batch is not None and min_batch < batch
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            opset_version=opset,
            input_names=list(input_names),
            output_names=list(output_names),
            custom_translation_table=TRANSLATIONS,
            dynamic_shapes=({0: Dim(BATCH_NAME, min=min_batch, max=batch)},) * len(inputs) if free else None,
            optimize=False,  # its rewrite rules take a minute and find nothing here; folding is all there is to do
            verbose=False,
        )
        assert program is not None
        optimizer.fold_constants(program.model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
        for clean in (
            ir_passes.RemoveUnusedNodesPass(),
            ir_passes.CommonSubexpressionEliminationPass(),
            ir_passes.DeduplicateInitializersPass(),
            ir_passes.RemoveUnusedNodesPass(),
        ):
            clean(program.model)
        proto = program.model_proto
    _name_by_module(proto)
    _strip_traces(proto)
    if bodies:
        proto.functions.extend(functions(opset))
    if not any(entry.domain == DOMAIN for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    if bodies:
        onnx.checker.check_model(proto)
    return proto


def versions() -> dict[str, str]:
    """Versions of what an export depends on."""
    names = ("mtmamba", "torch", "onnx", "onnxscript", "timm")
    return {"python": platform.python_version(), **{name: packages.version(name) for name in names}}


_mtmamba = onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION)


def _translate_selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus=True):  # type: ignore[no-untyped-def]
    attributes = {SOFTPLUS_ATTRIBUTE: int(delta_softplus)}
    return _mtmamba.SelectiveScan(u, delta, A, B, C, D, delta_bias, **attributes)


def _translate_selective_scan_2d(x, x_dbl, dt_weight, dt_bias, A, D):  # type: ignore[no-untyped-def]
    return _mtmamba.SelectiveScan2D(x, x_dbl, dt_weight, dt_bias, A, D)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.mtmamba.selective_scan.default: _translate_selective_scan,
    torch.ops.mtmamba.selective_scan_2d.default: _translate_selective_scan_2d,
}
"""torch operator -> the onnxscript function that writes its node; for `torch.onnx.export(custom_translation_table=...)`."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter (deprecations inside torch, folding notes) off the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_by_module(proto: ModelProto) -> None:
    """Name every node MODULE/NAME, after the module that computes it (`stages.0.stm.1.ss2d/conv2d_2`): what precision
    plans, bisection and TensorRT's messages say is then a place in the model."""
    for node in proto.graph.node:
        noted = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
        *modules, _ = ast.literal_eval(noted) or [""]
        module = next((name for name in reversed(modules) if name), "")
        node.name = f"{module}/{node.name.removeprefix('node_')}"


def _strip_traces(proto: ModelProto) -> None:
    """Drop what the exporter notes on every node (stack traces with the exporting machine's paths)."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
    del proto.graph.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
