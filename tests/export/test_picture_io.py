"""The graph with pictures at both ends against the same model with its ends outside."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mtmamba.config import preset
from mtmamba.errors import MtmError
from mtmamba.export.metadata import read_metadata
from mtmamba.export.picture_io import with_picture_io
from mtmamba.metadata import INPUT_NAME, METADATA_KEY, ModelMetadata
from mtmamba.postprocess import postprocess
from mtmamba.runtime.preprocess import preprocess

SIZE, BATCH = (48, 64), 2


@pytest.fixture(scope="module")
def toy() -> onnx.ModelProto:
    """A random 3x3 convolution a task; the arrangement of `mtm-export`'s files."""
    config = replace(preset("synthetic", "nano"), input_size=SIZE)
    metadata = ModelMetadata(config=config, input_size=SIZE, batch=BATCH, versions={})
    rng = np.random.default_rng(7)
    nodes, weights, outputs = [], [], []
    for task in metadata.tasks:
        kernel = rng.normal(0, 0.5, (task.channels, 3, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"{task.name}.w"))
        nodes.append(helper.make_node("Conv", [INPUT_NAME, f"{task.name}.w"], [task.name], pads=[1, 1, 1, 1]))
        outputs.append(helper.make_tensor_value_info(task.name, TensorProto.FLOAT, metadata.output_shape(task)))
    image = helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, metadata.input_shape)
    graph = helper.make_graph(nodes, "toy", [image], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    return model


def run(model: onnx.ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {INPUT_NAME: image}), strict=True))


def test_the_same_answers(toy: onnx.ModelProto) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (BATCH, *SIZE, 3), dtype=np.uint8)
    metadata = read_metadata(toy, "toy")
    raw = run(toy, np.stack([preprocess(picture[:, :, ::-1], metadata) for picture in pictures]))
    final = with_picture_io(toy)
    found = run(final, pictures)
    changed = read_metadata(final, "final")
    assert changed == replace(metadata, io="picture")
    for task in metadata.tasks:
        assert found[task.name].shape == changed.output_shape(task), task.name
        assert found[task.name].dtype == (np.float16 if task.kind == "depth" else np.uint8)
        for image in range(BATCH):
            wanted, value = postprocess(raw[task.name][image], task, SIZE), found[task.name][image].astype(np.float64)
            if task.kind == "labels":
                assert (value == wanted).mean() > 0.999
            elif task.kind == "depth":
                np.testing.assert_allclose(value, wanted, rtol=6e-4, atol=1e-6)
            elif task.kind == "normals":
                vector = (value - 127.5) / 127.5
                vector /= np.linalg.norm(vector, axis=-1, keepdims=True)
                angle_deg = np.degrees(np.arccos(np.clip((vector * wanted).sum(-1), -1, 1)))
                assert angle_deg.max() < 0.45
            else:
                np.testing.assert_allclose(value / 255, wanted, atol=0.5 / 255 + 1e-5)


def test_the_model_itself_is_left_alone(toy: onnx.ModelProto) -> None:
    before = toy.SerializeToString()
    final = with_picture_io(toy)
    assert toy.SerializeToString() == before
    with pytest.raises(MtmError, match="expected a model with raw inputs and outputs, found one with io picture"):
        with_picture_io(final)


def test_extremes(toy: onnx.ModelProto) -> None:
    """Scores that saturate, and depths past what a half can hold."""

    def with_outputs(change: Callable[[str, np.ndarray], np.ndarray]) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(toy)
        for weight in model.graph.initializer:
            weight.CopyFrom(numpy_helper.from_array(change(weight.name, numpy_helper.to_array(weight)), weight.name))
        return with_picture_io(model)

    picture = np.full((BATCH, *SIZE, 3), 255, np.uint8)
    huge = run(with_outputs(lambda name, value: np.full_like(value, 1e6)), picture)
    assert huge["edge"].min() == huge["edge"].max() == 255
    assert np.all(huge["depth"] == 65504)
    small = run(with_outputs(lambda name, value: np.full_like(value, -1e6)), picture)
    assert small["edge"].max() == 0 and small["depth"].max() == 0
    none = run(with_outputs(lambda name, value: np.zeros_like(value)), picture)
    assert np.all(none["normals"] == 128) and np.all(none["semseg"] == 0)
