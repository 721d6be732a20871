"""The Triton repository: its configurations against Triton's own schema, and the ensemble run as the server would."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from mtmamba.export.picture_io import with_picture_io
from mtmamba.metadata import ModelMetadata
from mtmamba.postprocess import postprocess
from mtmamba.runtime.preprocess import preprocess
from mtmamba.runtime.sidecar import Sidecar, sidecar_path
from mtmamba.runtime.triton import write_repository
from mtmamba.runtime.triton_cli import main

model_config = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc], which holds Triton's schema"
)
TYPES = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32, "TYPE_FP16": np.float16}


def read_config(folder: Path) -> Any:
    """Parsed by Triton's published schema: an unknown field or a wrong type is an error."""
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config.ModelConfig())


class Server:
    """As much of Triton as an ensemble needs: every tensor is checked against the configurations, as the server does."""

    def __init__(self, models: Path, names: tuple[str, ...]) -> None:
        self.configs = {name: read_config(models / name) for name in names}
        assert set(names) == {path.name for path in models.iterdir()}, "every folder is a model"
        for name, config in self.configs.items():
            assert config.name == name and (models / name / "1").is_dir()
        self.sessions = {
            name: onnxruntime.InferenceSession(str(models / name / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
            for name, config in self.configs.items() if config.backend == "onnxruntime"
        }  # fmt: skip

    def infer(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        config = self.configs[name]
        self._check(config.input, inputs)
        if config.platform == "ensemble":
            tensors = dict(inputs)
            for step in config.ensemble_scheduling.step:
                given = {inner: tensors[outer] for inner, outer in step.input_map.items()}
                made = self.infer(step.model_name, given)
                tensors |= {outer: made[inner] for inner, outer in step.output_map.items()}
            outputs = {output.name: tensors[output.name] for output in config.output}
        else:
            names = [output.name for output in config.output]
            outputs = dict(zip(names, self.sessions[name].run(names, inputs), strict=True))
        self._check(config.output, outputs)
        return outputs

    def _check(self, wanted: Any, found: dict[str, np.ndarray]) -> None:
        assert {tensor.name for tensor in wanted} == set(found)
        for tensor in wanted:
            value = found[tensor.name]
            assert value.dtype == TYPES[model_config.DataType.Name(tensor.data_type)], tensor.name
            assert len(tensor.dims) == value.ndim, tensor.name
            assert all(dim in (-1, size) for dim, size in zip(tensor.dims, value.shape, strict=True)), tensor.name


@pytest.mark.parametrize("io", ["raw", "picture"])
def test_the_ensemble_answers_as_mtm_run_does(
    tmp_path: Path, toy_onnx: Path, metadata: ModelMetadata, photo: np.ndarray, io: str
) -> None:
    raw = onnxruntime.InferenceSession(str(toy_onnx), providers=["CPUExecutionProvider"])
    if io == "picture":
        onnx.save(with_picture_io(onnx.load(str(toy_onnx))), str(toy_onnx))
    made = write_repository(toy_onnx, tmp_path / "repo", "mtmamba", on_gpu=False)
    assert len(made.models) == (4 if io == "raw" else 3)
    server = Server(tmp_path / "repo" / "models", made.models)
    size = metadata.input_size
    image = cv2.GaussianBlur(photo, (0, 0), 3)  # smooth: the two resize methods differ little on it
    picture = cv2.resize(image, (2 * size[1], 2 * size[0]), interpolation=cv2.INTER_CUBIC)
    found = server.infer("mtmamba", {"picture": np.ascontiguousarray(picture[None, :, :, ::-1])})
    names = [task.name for task in metadata.tasks]
    outputs = raw.run(names, {"image": preprocess(picture, metadata)[None]})
    for task, output in zip(metadata.tasks, outputs, strict=True):
        wanted, value = postprocess(output[0], task, size), found[task.name][0].astype(np.float64)
        if task.kind == "labels":
            assert (value == wanted).mean() > 0.97
            continue
        value = {"depth": value, "normals": (value - 127.5) / 127.5}.get(task.kind, value / 255)
        difference = np.abs(value - wanted) / (3 if task.kind == "depth" else 1)  # the toy's depth lies around 3 m
        assert difference.mean() < 0.01 and np.quantile(difference, 0.99) < 0.05, task.name


@pytest.mark.parametrize("io", ["raw", "picture"])
def test_any_batch_of_a_range(tmp_path: Path, make_toy: Callable[..., Path], photo: np.ndarray, io: str) -> None:
    path = make_toy(tmp_path / "toy.onnx", 3, min_batch=1)
    if io == "picture":
        onnx.save(with_picture_io(onnx.load(str(path))), str(path))
    made = write_repository(path, tmp_path / "repo", "mtmamba", on_gpu=False)
    server = Server(tmp_path / "repo" / "models", made.models)
    pictures = np.stack([photo, photo[::-1], photo[:, ::-1]])
    whole = server.infer("mtmamba", {"picture": pictures})
    one = server.infer("mtmamba", {"picture": pictures[1:2]})
    for name, value in one.items():
        assert len(whole[name]) == 3
        np.testing.assert_allclose(value[0].astype(float), whole[name][1].astype(float), atol=1, err_msg=name)


def test_configurations(tmp_path: Path, toy_onnx: Path) -> None:
    made = write_repository(toy_onnx, tmp_path / "r", "seg", on_gpu=True, instances=3)
    assert made.models == ("seg", "seg_resize", "seg_model", "seg_predictions")
    groups = {name: read_config(tmp_path / "r" / "models" / name).instance_group for name in made.models[1:]}
    assert {name: (group[0].count, group[0].kind) for name, group in groups.items()} == {
        "seg_resize": (1, model_config.ModelInstanceGroup.KIND_GPU),
        "seg_model": (3, model_config.ModelInstanceGroup.KIND_GPU),
        "seg_predictions": (1, model_config.ModelInstanceGroup.KIND_GPU),
    }
    assert "docker run --rm --gpus all -p" in (tmp_path / "r" / "README.md").read_text()
    write_repository(toy_onnx, tmp_path / "cpu", "seg", on_gpu=False)
    readme = (tmp_path / "cpu" / "README.md").read_text()
    assert "docker run --rm -p" in readme and "tritonserver --model-repository" in readme


@pytest.fixture
def engine(tmp_path: Path, metadata: ModelMetadata) -> Callable[..., Path]:
    def make(**changes: Any) -> Path:
        from mtmamba.files import sha256

        path = tmp_path / "best.engine"
        path.write_bytes(b"engine")
        side = Sidecar(
            flavour="tensorrt", tensorrt_version="10.14", compute_capabilities=("9.0",), plugin_hash="x",
            plugin_ops=("SelectiveScan2D",), onnx_path="best.onnx", onnx_sha256="0" * 64, engine_sha256=sha256(path),
            engine_bytes=6, precision="fp16", metadata=metadata, precision_plan={}, options=(),
        )  # fmt: skip
        sidecar_path(path).write_text(replace(side, **changes).to_json())
        return path

    return make


def test_an_engine_with_its_plugin(tmp_path: Path, engine: Callable[..., Path]) -> None:
    (tmp_path / "libp.so").write_bytes(b"plugin")
    made = write_repository(engine(), tmp_path / "r", "m", plugin=tmp_path / "libp.so", on_gpu=False)
    config = read_config(tmp_path / "r" / "models" / "m_model")
    assert config.backend == "tensorrt" and (tmp_path / "r/models/m_model/1/model.plan").read_bytes() == b"engine"
    assert made.plugin == tmp_path / "r/plugins/libp.so" and made.plugin.read_bytes() == b"plugin"
    readme = (tmp_path / "r/README.md").read_text()
    assert "LD_PRELOAD=/repository/plugins/libp.so" in readme and "--gpus all" in readme, "an engine needs its GPU"


def test_refusals(tmp_path: Path, toy_onnx: Path, engine: Callable[..., Path]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()

    def error(*arguments: object) -> str:
        result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
        assert result.exit_code == 1, result.output
        return str(json.loads(result.stdout)["error"])

    new = tmp_path / "new"
    assert "expected a new or empty folder" in error(toy_onnx, "-o", tmp_path / "full")
    assert "expected an engine of TensorRT, which is what Triton loads" in error(
        engine(flavour="tensorrt-rtx"), "-o", new
    )
    assert "belongs to another engine" in error(engine(engine_sha256="1" * 64), "-o", new)
    assert "needs the plugin library" in error(engine(), "-o", new)
    assert "expected an .onnx file or an .engine" in error(Path(__file__), "-o", new)
    assert "expected a plugin library file" in error(toy_onnx, "--plugin", tmp_path / "no.so", "-o", new)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for place in ("/proc/t", tmp_path / "file" / "x", tmp_path / "file" / "x" / "y", tmp_path / "link"):
        sentence = error(toy_onnx, "-o", place)
        assert f"{place}: cannot write into" in sentence and "choose another folder with --output" in sentence
    assert not new.exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_client(tmp_path: Path, toy_onnx: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's own code against a server that takes requests as tritonclient encodes them."""
    made = write_repository(toy_onnx, tmp_path / "repo", "mtmamba", on_gpu=False)
    server = Server(tmp_path / "repo" / "models", made.models)
    import tritonclient.http as triton

    class Client:
        def __init__(self, url: str) -> None:
            assert url == "localhost:8000"

        def get_model_metadata(self, name: str) -> dict[str, Any]:
            return {"outputs": [{"name": output.name} for output in server.configs[name].output]}

        def infer(self, name: str, inputs: list[Any], outputs: list[Any]) -> Any:
            (request,) = inputs
            data = np.frombuffer(request._get_binary_data(), np.uint8).reshape(request.shape())
            answer = server.infer(name, {request.name(): data})
            asked = {output.name() for output in outputs}
            return type("Answer", (), {"as_numpy": lambda self, key: answer[key] if key in asked else None})()

        def close(self) -> None:
            """Nothing is open."""

    monkeypatch.setattr(triton, "InferenceServerClient", Client)
    cv2.imwrite(str(tmp_path / "p.png"), photo)
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "examples"))
    import triton_client  # type: ignore[import-not-found]

    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "p.png"), "--save", str(tmp_path / "p.npz")])
    triton_client.main()
    with np.load(tmp_path / "p.npz") as found:
        assert found["semseg"].shape == (48, 64) and found["normals"].shape == (48, 64, 3)


def test_the_client_without_a_server(
    tmp_path: Path,
    photo: np.ndarray,
    unused_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    cv2.imwrite(str(tmp_path / "p.png"), photo)
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "examples"))
    import triton_client

    for url in (f"127.0.0.1:{unused_port}", f"http://127.0.0.1:{unused_port}"):
        monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "p.png"), "--url", url])
        with pytest.raises(SystemExit) as caught:
            triton_client.main()
        said = capsys.readouterr().err
        assert caught.value.code == 1 and said.startswith(f"{url}: expected a Triton server") and said.count("\n") == 1
