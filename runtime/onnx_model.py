"""An exported ONNX file, read for TensorRT: checked, its metadata, its operator nodes, the bodies plugins replace."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from mtmamba.errors import MtmError
from mtmamba.export.metadata import read_metadata
from mtmamba.files import existing_file
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime.plugin import NAMESPACE

INLINE_LIMIT = 2_000_000_000
"""Bytes of weights past which a model does not fit one protobuf message (2 GiB): they go to a file beside it."""


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """proto: the whole model, external data included. op_counts: nodes of our operators, by operator name."""

    path: Path
    proto: onnx.ModelProto
    metadata: ModelMetadata
    op_counts: dict[str, int]


def load_onnx(path: Path) -> OnnxModel:
    """Read and check an exported model. Raises MtmError for a file that is missing, no ONNX, invalid, or not ours, and
    for one whose external data is missing or whose inputs have no fixed size (but for the batch, where it is free)."""
    path = existing_file(path, "model")
    again = "make it again with mtm-export"
    try:
        proto = onnx.load(str(path))
        if not proto.graph.node:
            raise MtmError(f"{path}: expected an ONNX model, found a file without a graph; {again}")
        onnx.checker.check_model(str(path))
        metadata = read_metadata(proto, str(path))
        _check_sizes(path, proto, metadata)
        return OnnxModel(path=path, proto=proto, metadata=metadata, op_counts=count_ops(proto))
    except DecodeError as error:
        raise MtmError(f"{path}: expected an ONNX model, found a file that is none or is cut short; {again}") from error
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise MtmError(f"{path}: not a valid ONNX model ({reason}); {again}") from error


def _check_sizes(path: Path, proto: onnx.ModelProto, metadata: ModelMetadata) -> None:
    wanted = [] if metadata.min_batch is None else [0]
    for value in proto.graph.input:
        dims = list(value.type.tensor_type.shape.dim)
        if [index for index, dim in enumerate(dims) if not dim.HasField("dim_value")] != wanted:
            names = [dim.dim_param or "?" for dim in dims if not dim.HasField("dim_value")] or ["none free"]
            but = f" but for a batch of {metadata.batch_text}" if wanted else ""
            raise MtmError(
                f"{path}: expected inputs of fixed size{but}, found {value.name} with {', '.join(names)}; export "
                "the model again with mtm-export, which fixes them"
            )


def count_ops(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each of our operators the model runs: in the graph, its subgraphs, and the bodies of functions
    (other than our operators') once for every call."""
    bodies = {(f.domain, f.name): f.node for f in model.functions}

    def count(nodes: Iterable[onnx.NodeProto]) -> Counter[str]:
        total: Counter[str] = Counter()
        for node in _with_subgraphs(nodes):
            if node.domain == NAMESPACE:
                total[node.op_type] += 1
            elif (node.domain, node.op_type) in bodies:
                total += count(bodies[node.domain, node.op_type])
        return total

    return dict(count(model.graph.node))


def _with_subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _with_subgraphs(graph.node)


@contextmanager
def without_bodies(model: onnx.ModelProto, ops: frozenset[str]) -> Iterator[None]:
    """Within the block `model` has no function bodies of our operators `ops`, so that the parser looks for plugins:
    TensorRT for RTX would take a body before a plugin. The other functions stay, and nothing is copied."""
    bodies = list(model.functions)
    del model.functions[:]
    model.functions.extend(body for body in bodies if not (body.domain == NAMESPACE and body.name in ops))
    try:
        yield
    finally:
        del model.functions[:]
        model.functions.extend(bodies)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the graph's initialisers."""
    return sum(tensor.ByteSize() for tensor in model.graph.initializer)
