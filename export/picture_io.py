"""Pictures in, pictures out: move preprocessing and postprocessing into the exported graph.

A model exported by `mtm-export` takes normalised floats and gives raw scores, 40 planes of float32 for NYUDv2's classes
alone. On a GPU most of the time between two frames then goes into copying and into the CPU's arg max. This pass puts
both ends into the graph, so that a deployed engine takes the picture's bytes and gives back what is drawn:

=========== ==================================================== =========================================
kind        from                                                 to
=========== ==================================================== =========================================
input       [B, 3, H, W] float32, normalised                     [B, H, W, 3] uint8, RGB
labels      [B, C, h, w] scores                                  [B, h, w] uint8, the class
saliency    [B, 2, h, w] scores                                  [B, h, w] uint8, 255 * probability, rounded
boundary    [B, 1, h, w] score                                   [B, h, w] uint8, 255 * probability, rounded
depth       [B, 1, h, w]                                         [B, h, w] float16, at least 0
normals     [B, 3, h, w]                                         [B, h, w, 3] uint8, 127.5 + 127.5 * n, rounded
=========== ==================================================== =========================================

B batch, H W the model's input, h w its output, C classes, n the unit vector. What is rounded away: at most 1/510 of a
probability, 0.05 % of a depth, and 0.4 degrees of a normal.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mtmamba.errors import MtmError
from mtmamba.export.metadata import read_metadata
from mtmamba.metadata import INPUT_NAME, METADATA_KEY, ModelMetadata
from mtmamba.tasks import Task

_LARGEST_HALF = 65504.0
_OPSET, _IR_VERSION = 18, 9  # what servers some years old still read


def with_picture_io(model: onnx.ModelProto, source: str = "the model") -> onnx.ModelProto:
    """A copy of an exported model with the interface of the table above. Its metadata says so (`io`). Works on a model of
    any precision whose input and outputs are float32. Raises MtmError where the model is not ours or has it already."""
    metadata = read_metadata(model, source)
    if metadata.io != "raw":
        raise MtmError(f"{source}: expected a model with raw inputs and outputs, found one with io {metadata.io}")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = _Graph(result.graph)
    graph.prepend_input(metadata)
    for task in metadata.tasks:
        graph.append_output(task, metadata)
    entries = {entry.key: entry.value for entry in result.metadata_props}
    helper.set_model_props(result, {**entries, METADATA_KEY: replace(metadata, io="picture").to_json()})
    return result


def resize_graph(metadata: ModelMetadata) -> onnx.ModelProto:
    """A graph of its own: `picture` [B, any, any, 3] uint8 RGB to the model's input `image`, resized whatever its aspect
    (bilinear, with the area a pixel covers where it shrinks) and, unless the model does it itself, normalised."""
    height, width = metadata.input_size
    dtype = TensorProto.UINT8 if metadata.io == "picture" else TensorProto.FLOAT
    whole = metadata.file_shape(metadata.input_shape)
    picture = helper.make_tensor_value_info("picture", TensorProto.UINT8, [whole[0], None, None, 3])
    image = helper.make_tensor_value_info(INPUT_NAME, dtype, whole)
    graph = _Graph(helper.make_graph([], "resize", [picture], [image]))
    size = graph.constant("size", np.array([height, width], np.int64))
    graph.node("Cast", ["picture"], "picture.float", to=TensorProto.FLOAT)
    graph.node("Transpose", ["picture.float"], "picture.planes", perm=[0, 3, 1, 2])
    graph.node("Shape", ["picture.planes"], "planes", start=0, end=2)
    graph.node("Concat", ["planes", size], "sizes", axis=0)
    graph.node("Resize", ["picture.planes", "", "", "sizes"], "resized", mode="linear", antialias=1)
    if metadata.io == "picture":
        graph.node("Transpose", ["resized"], "resized.last", perm=[0, 2, 3, 1])
        graph.bytes("resized.last", 1.0, 0.5, INPUT_NAME)
    else:
        graph.normalise("resized", INPUT_NAME, metadata)
    return graph.model()


def predictions_graph(metadata: ModelMetadata) -> onnx.ModelProto:
    """A graph of its own: every task's raw output, named TASK.raw, to its prediction TASK as the table has it."""
    raw = [
        helper.make_tensor_value_info(
            f"{task.name}.raw", TensorProto.FLOAT, metadata.file_shape(metadata.output_shape(task))
        )
        for task in metadata.tasks
    ]
    outputs = [helper.make_empty_tensor_value_info(task.name) for task in metadata.tasks]
    graph = _Graph(helper.make_graph([], "predictions", raw, outputs))
    for task in metadata.tasks:
        graph.append_output(task, metadata)
    return graph.model()


class _Graph:
    """A graph being changed. Tensors that get a new meaning keep their old one under NAME.raw."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph

    def prepend_input(self, metadata: ModelMetadata) -> None:
        raw = f"{INPUT_NAME}.raw"
        for node in self._graph.node:
            for index, name in enumerate(node.input):
                if name == INPUT_NAME:
                    node.input[index] = raw
        value = next(value for value in self._graph.input if value.name == INPUT_NAME)
        shape = metadata.file_shape((metadata.batch, *metadata.input_size, 3))
        value.CopyFrom(helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, shape))
        rest = list(self._graph.node)
        del self._graph.node[:]
        self.node("Cast", [INPUT_NAME], f"{raw}.float", to=TensorProto.FLOAT)
        self.node("Transpose", [f"{raw}.float"], f"{raw}.planes", perm=[0, 3, 1, 2])
        self.normalise(f"{raw}.planes", raw, metadata)
        self._graph.node.extend(rest)

    def normalise(self, planes: str, output: str, metadata: ModelMetadata) -> None:
        """0..255 to what the network learned on."""
        mean, std = np.array(metadata.mean), np.array(metadata.std)
        scale = self.constant(f"{output}.scale", (1 / (255 * std)).reshape(1, 3, 1, 1))
        shift = self.constant(f"{output}.shift", (mean / std).reshape(1, 3, 1, 1))
        self.node("Sub", [self.node("Mul", [planes, scale], f"{output}.scaled"), shift], output)

    def append_output(self, task: Task, metadata: ModelMetadata) -> None:
        raw = f"{task.name}.raw"
        for node in self._graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == task.name:
                        names[index] = raw
        shape = metadata.file_shape((metadata.batch, *metadata.output_size))
        dtype = TensorProto.FLOAT16 if task.kind == "depth" else TensorProto.UINT8
        if task.kind == "labels":
            self.node("ArgMax", [raw], f"{raw}.index", axis=1, keepdims=0)
            self.node("Cast", [f"{raw}.index"], task.name, to=dtype)
        elif task.kind == "saliency":
            first, second = self._channel(raw, 0), self._channel(raw, 1)
            self.node("Sub", [second, first], f"{raw}.score")
            self.bytes(self.node("Sigmoid", [f"{raw}.score"], f"{raw}.share"), 255.0, 0.5, task.name)
        elif task.kind == "boundary":
            score = self._channel(raw, 0)
            self.bytes(self.node("Sigmoid", [score], f"{raw}.share"), 255.0, 0.5, task.name)
        elif task.kind == "depth":
            low, high = self.constant(f"{raw}.low", 0.0), self.constant(f"{raw}.high", _LARGEST_HALF)
            self.node("Clip", [self._channel(raw, 0), low, high], f"{raw}.clipped")
            self.node("Cast", [f"{raw}.clipped"], task.name, to=dtype)
        else:
            shape.append(3)
            self._unit_vectors(raw)
            self.node("Transpose", [f"{raw}.unit"], f"{raw}.last", perm=[0, 2, 3, 1])
            self.bytes(f"{raw}.last", 127.5, 128.0, task.name)
        value = next(value for value in self._graph.output if value.name == task.name)
        value.CopyFrom(helper.make_tensor_value_info(task.name, dtype, shape))

    def _channel(self, raw: str, channel: int) -> str:
        """[B, C, h, w] -> [B, h, w]"""
        index = self.constant(f"{raw}.at{channel}", np.array(channel, np.int64))
        return self.node("Gather", [raw, index], f"{raw}.channel{channel}", axis=1)

    def _unit_vectors(self, raw: str) -> None:
        axis = self.constant(f"{raw}.axis", np.array([1], np.int64))
        self.node("ReduceL2", [raw, axis], f"{raw}.length", keepdims=1)
        self.node("Max", [f"{raw}.length", self.constant(f"{raw}.least", 1e-12)], f"{raw}.divisor")
        self.node("Div", [raw, f"{raw}.divisor"], f"{raw}.unit")

    def bytes(self, value: str, scale: float, shift: float, output: str) -> str:
        """scale * value + shift, cut to a whole number: with half a step in `shift`, rounded."""
        self.node("Mul", [value, self.constant(f"{output}.bytes.scale", scale)], f"{value}.scaled")
        self.node("Add", [f"{value}.scaled", self.constant(f"{output}.bytes.shift", shift)], f"{value}.shifted")
        low, high = self.constant(f"{output}.bytes.low", 0.0), self.constant(f"{output}.bytes.high", 255.0)
        self.node("Clip", [f"{value}.shifted", low, high], f"{value}.clipped")
        return self.node("Cast", [f"{value}.clipped"], output, to=TensorProto.UINT8)

    def constant(self, name: str, value: float | np.ndarray) -> str:
        """A weight; floats become float32."""
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = helper.make_node(kind, inputs, [output], name=f"picture_io.{output}", **attributes)
        self._graph.node.append(node)
        return output

    def model(self) -> onnx.ModelProto:
        return helper.make_model(self._graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
