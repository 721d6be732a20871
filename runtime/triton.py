"""A model repository for NVIDIA's Triton Inference Server: the model, and its two ends as models of their own.

    FOLDER/models/NAME                 the ensemble: `picture` in, a prediction a task out
    FOLDER/models/NAME_resize          ONNX Runtime: a picture of any size to the model's input
    FOLDER/models/NAME_model           ONNX Runtime (.onnx) or TensorRT (.engine)
    FOLDER/models/NAME_predictions     ONNX Runtime: raw outputs to predictions; absent where the model does it itself
    FOLDER/plugins/                    with an engine: the plugin library, which the server has to load
    FOLDER/README.md                   the command that starts the server

Forms are those of `mtmamba.export.picture_io`. Needs neither Triton nor a GPU.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from mtmamba.errors import MtmError
from mtmamba.export.picture_io import predictions_graph, resize_graph
from mtmamba.files import existing_file, sha256
from mtmamba.metadata import INPUT_NAME, ModelMetadata
from mtmamba.runtime import sidecar
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.tasks import Task

PICTURE = "picture"
TRITON_FLAVOUR = "tensorrt"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """name, Triton's type, and the whole shape, the batch too (-1: any)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def text(self) -> str:
        dims = ", ".join(str(dim) for dim in self.shape)
        return f'  {{ name: "{self.name}" data_type: {self.dtype} dims: [ {dims} ] }}'


@dataclass(frozen=True, kw_only=True)
class Repository:
    """What was written. models: folders under `folder`/models, the ensemble first."""

    folder: Path
    models: tuple[str, ...]
    plugin: Path | None


def write_repository(
    model: Path, folder: Path, name: str, *, on_gpu: bool = True, instances: int = 1, plugin: Path | None = None
) -> Repository:
    """Write the repository for an .onnx file or a TensorRT .engine into `folder`, which must not exist or be empty.

    on_gpu: where ONNX Runtime runs its models. instances: copies of the model that run side by side. plugin: the plugin
    library an engine needs. Raises MtmError for another kind of file, an engine Triton cannot load, and a folder that is
    not empty or cannot be written; then nothing is written.
    """
    with _writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise MtmError(
                f"{folder}: expected a new or empty folder, found something in it; choose another with --output"
            )
    existing_file(model, "model")
    if plugin is not None:
        existing_file(plugin, "plugin library")
    if model.suffix == ".onnx":
        metadata, backend, file_name = load_onnx(model).metadata, "onnxruntime", "model.onnx"
        plugin = None
    elif model.suffix == ".engine":
        metadata, backend, file_name = _engine_metadata(model, plugin), "tensorrt", "model.plan"
    else:
        raise MtmError(
            f"{model}: expected an .onnx file or an .engine, found {model.suffix!r}; make one with mtm-export"
        )
    needs_gpu = on_gpu or backend == "tensorrt"
    with _writing(folder), _beside(folder) as work:
        made = work / "made"
        writer = _Writer(made / "models", name, metadata, on_gpu=on_gpu, instances=instances)
        writer.model(model, backend, file_name)
        names = writer.ends_and_ensemble()
        if plugin is not None:
            (made / "plugins").mkdir()
            shutil.copy2(plugin, made / "plugins" / plugin.name)
        (made / "README.md").write_text(_readme(names, plugin, needs_gpu), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return Repository(folder=folder, models=names, plugin=None if plugin is None else folder / "plugins" / plugin.name)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in one sentence that `folder` cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise MtmError(
            f"{folder}: cannot write into {folder.parent} ({reason}); choose another folder with --output"
        ) from error


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, gone after the block."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as work:
        yield Path(work)


def _engine_metadata(model: Path, plugin: Path | None) -> ModelMetadata:
    side = sidecar.read(model)
    if side.flavour != TRITON_FLAVOUR:
        raise MtmError(
            f"{model}: expected an engine of TensorRT, which is what Triton loads, found one of {side.flavour}; build one "
            "with mtm-build-engine --flavour tensorrt, or give the .onnx file"
        )
    if sha256(model) != side.engine_sha256:
        raise MtmError(f"{model}: its sidecar belongs to another engine; build it again with mtm-build-engine")
    if side.plugin_ops and plugin is None:
        raise MtmError(f"{model}: it needs the plugin library it was built with; name it with --plugin")
    return side.metadata


class _Writer:
    """Writes the models of one repository."""

    def __init__(self, folder: Path, name: str, metadata: ModelMetadata, *, on_gpu: bool, instances: int) -> None:
        self._folder, self._name, self._metadata = folder, name, metadata
        self._kind, self._instances = "KIND_GPU" if on_gpu else "KIND_CPU", instances

    def model(self, path: Path, backend: str, file_name: str) -> None:
        folder = self._make("model", backend, [self._image()], [self._raw(task) for task in self._metadata.tasks])
        shutil.copy2(path, folder / file_name)

    def ends_and_ensemble(self) -> tuple[str, ...]:
        picture = Tensor(
            name=PICTURE, dtype="TYPE_UINT8", shape=_dims(self._metadata, (self._metadata.batch, -1, -1, 3))
        )
        outputs = [prediction(task, self._metadata) for task in self._metadata.tasks]
        resize = self._make("resize", "onnxruntime", [picture], [self._image()])
        onnx.save(resize_graph(self._metadata), str(resize / "model.onnx"))
        steps = [("resize", {PICTURE: PICTURE}, {INPUT_NAME: INPUT_NAME})]
        raw = {task.name: self._raw_name(task) for task in self._metadata.tasks}
        steps.append(("model", {INPUT_NAME: INPUT_NAME}, raw))
        if self._metadata.io == "raw":
            inputs = [self._raw(task, self._raw_name(task)) for task in self._metadata.tasks]
            folder = self._make("predictions", "onnxruntime", inputs, outputs)
            onnx.save(predictions_graph(self._metadata), str(folder / "model.onnx"))
            steps.append(("predictions", {name: name for name in raw.values()}, {task: task for task in raw}))
        text = [f'name: "{self._name}"', 'platform: "ensemble"', *_tensors([picture], outputs)]
        text += ["ensemble_scheduling {", *(self._step(*step) for step in steps), "}"]
        (self._folder / self._name / "1").mkdir(parents=True)
        self._write_config(self._name, text)
        return (self._name, *(f"{self._name}_{step[0]}" for step in steps))

    def _raw_name(self, task: Task) -> str:
        """What the ensemble calls a model's output: TASK itself where the model gives predictions."""
        return task.name if self._metadata.io == "picture" else f"{task.name}.raw"

    def _image(self) -> Tensor:
        dtype = "TYPE_UINT8" if self._metadata.io == "picture" else "TYPE_FP32"
        return Tensor(name=INPUT_NAME, dtype=dtype, shape=_dims(self._metadata, self._metadata.input_shape))

    def _raw(self, task: Task, name: str | None = None) -> Tensor:
        if self._metadata.io == "picture":
            return prediction(task, self._metadata)
        shape = _dims(self._metadata, self._metadata.output_shape(task))
        return Tensor(name=name or task.name, dtype="TYPE_FP32", shape=shape)

    def _make(self, part: str, backend: str, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> Path:
        """A model's folder and configuration; the folder its file goes to."""
        name = f"{self._name}_{part}"
        version = self._folder / name / "1"
        version.mkdir(parents=True)
        kind = "KIND_GPU" if backend == "tensorrt" else self._kind
        count = self._instances if part == "model" else 1
        group = f"instance_group [ {{ count: {count} kind: {kind} }} ]"
        # max_batch_size 0: the batch is one of the dimensions, as the files have it.
        text = [f'name: "{name}"', f'backend: "{backend}"', "max_batch_size: 0", *_tensors(inputs, outputs), group]
        self._write_config(name, text)
        return version

    def _step(self, part: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
        maps = [f'    input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
        maps += [f'    output_map {{ key: "{key}" value: "{value}" }}' for key, value in outputs.items()]
        head = f'  step {{\n    model_name: "{self._name}_{part}"\n    model_version: -1\n'
        return head + "\n".join(maps) + "\n  }"

    def _write_config(self, name: str, lines: list[str]) -> None:
        (self._folder / name / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def prediction(task: Task, metadata: ModelMetadata) -> Tensor:
    """What comes out for a task: `export.picture_io`'s table."""
    shape = _dims(metadata, (metadata.batch, *metadata.output_size, *((3,) if task.kind == "normals" else ())))
    return Tensor(name=task.name, dtype="TYPE_FP16" if task.kind == "depth" else "TYPE_UINT8", shape=shape)


def _dims(metadata: ModelMetadata, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape with its batch as the server is told it: any, where it is free."""
    return shape if metadata.min_batch is None else (-1, *shape[1:])


def _tensors(inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> list[str]:
    return [
        "input [", ",\n".join(tensor.text() for tensor in inputs), "]",
        "output [", ",\n".join(tensor.text() for tensor in outputs), "]",
    ]  # fmt: skip


def _readme(names: tuple[str, ...], plugin: Path | None, needs_gpu: bool) -> str:
    gpus = " --gpus all" if needs_gpu else ""
    preload = f" --env LD_PRELOAD=/repository/plugins/{plugin.name}" if plugin else ""
    return f"""# {names[0]}, for the Triton Inference Server

    docker run --rm{gpus} -p 8000:8000 -p 8001:8001 -v $PWD:/repository{preload} \\
        nvcr.io/nvidia/tritonserver:YY.MM-py3 tritonserver --model-repository=/repository/models

Send pictures to `{names[0]}`: `picture` [1, height, width, 3] uint8 RGB of any size. It answers with a tensor a task, at the
model's output size. `examples/triton_client.py` of mtmamba does so. YY.MM: with an engine, the release whose TensorRT is
the one the engine was built with.
"""
