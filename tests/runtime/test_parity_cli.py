"""mtm-parity as it is typed: what it finds by itself, what it prints, its exit status, its page."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import commands
import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mtmamba.metadata import ModelMetadata
from mtmamba.runtime.backends import open_backend
from mtmamba.runtime.parity_cli import main
from mtmamba.runtime.parity_precision import precision_of
from mtmamba.runtime.parity_tolerance import TOLERANCES

pytestmark = pytest.mark.usefixtures("here")
run, answer = partial(commands.run, main), partial(commands.answer, main)


def damaged(path: Path, target: str, task: str = "depth", factor: float = 1.01) -> Path:
    model = onnx.load(str(path))
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == f"{task}.w")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(factor), weights.name))
    onnx.save(model, target)
    return Path(target)


def test_two_files_that_agree(toy_onnx: Path) -> None:
    result = run("--reference", "toy.onnx", "--model", "toy.onnx", "--images", 2)
    assert result.exit_code == 0 and result.stderr == ""
    assert "images     2, random 48x64, seed 0" in result.stdout
    assert "candidate  toy.onnx with onnxruntime on CPU, fp32" in result.stdout
    assert "passed: 6 tasks within the tolerances of fp32" in result.stdout
    assert not re.search("FAIL|[^\x00-\x7f°]", result.stdout)
    found = answer("--reference", "toy.onnx", "--model", "toy.onnx", "--images", 2)
    assert found["passed"] and found["images"] == 2 and found["candidate"]["precision"] == "fp32"
    assert set(found["tasks"]["depth"]) == {
        "max_abs", "rms", "rms_percent", "cosine", "scale", "not_finite", "figures", "checks", "worst_image", "passed",
    }  # fmt: skip


def test_two_files_that_do_not(toy_onnx: Path) -> None:
    damaged(toy_onnx, "bad.onnx")
    command = ("--reference", "toy.onnx", "--model", "bad.onnx")
    result = run(*command)
    assert result.exit_code == 1
    assert re.search(r"^depth .* difference +0.0001 .* FAIL$", result.stdout, re.MULTILINE)
    assert result.stderr.startswith("error: bad.onnx does not agree with toy.onnx as fp32 should in depth (difference ")
    advice = re.search(r"allow it with --tolerance (depth\.difference=\S+)$", result.stderr.strip())
    assert advice
    found = answer(*command, status=1)
    assert not found["passed"] and "depth" in found["error"]
    assert [name for name, task in found["tasks"].items() if not task["passed"]] == ["depth"]
    checks = {check["figure"]: check for check in found["tasks"]["depth"]["checks"]}
    assert checks["difference"]["needed"] > checks["difference"]["allowed"] == 1e-4
    given = [f"depth.{figure}={check['needed']}" for figure, check in checks.items()]
    assert answer(*command, *(part for text in given for part in ("--tolerance", text)))["passed"]
    assert answer(*command, "--tasks", "semseg,edge")["passed"]
    assert answer(*command, "--precision", "int8")["passed"]


def test_what_it_finds_by_itself(toy_onnx: Path) -> None:
    result = run()
    assert result.exit_code == 1
    assert "expected a second model to compare with toy.onnx, found no other that can run here" in result.stderr
    (toy_onnx.parent / "best.fp16.engine").write_bytes(b"engine")
    result = run()
    assert "no NVIDIA GPU here: passing over best.fp16.engine" in result.stdout and result.exit_code == 1
    damaged(toy_onnx, "other.onnx")
    result = run()
    assert (
        result.exit_code == 1 and "2 files could be the reference" in result.stderr and "--reference" in result.stderr
    )
    result = run("--reference", "toy.onnx")
    assert result.exit_code == 1 and "2 files could be the model" in result.stderr and "--model" in result.stderr


def test_a_folder_of_pictures_and_a_video(toy_onnx: Path, photo: np.ndarray, make_video: Callable[..., Path]) -> None:
    Path("photos").mkdir()
    for index in range(3):
        cv2.imwrite(f"photos/p{index}.png", np.roll(photo, index * 9, axis=1))
    make_video(Path("clip.mp4"), frames=5)
    models = ("--reference", "toy.onnx", "--model", "toy.onnx")
    assert answer("photos", *models)["images"] == 3
    assert answer("photos", *models, "--max-frames", 2)["images"] == 2
    found = answer("clip.mp4", *models)
    assert found["images"] == 5 and found["source"] == "of clip.mp4"
    assert found["tasks"]["edge"]["worst_image"].startswith("frame_00000")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tolerance", "depth"), ("--tolerance", "height=1"), ("--precision", "fp7"), ("--images", "0"),
        ("--tasks", "flow"), ("--max-frames", "2"), ("--backend", "fast"),
    ],
)  # fmt: skip
def test_a_bad_option_is_status_2(toy_onnx: Path, arguments: tuple[str, ...]) -> None:
    assert run("--reference", "toy.onnx", "--model", "toy.onnx", *arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--tolerance", "flow.angle=1"), "tolerance of task 'flow'"),
        (("--html", "page.txt"), "expected an output name ending in .html"),
        (("--html", "toy.onnx"), "expected an output name ending in .html"),
        (("nothing.mp4",), "nothing.mp4: expected a video, picture or folder"),
        (("--backend", "torch"), "backend torch reads .pth .pt .tar files, found .onnx"),
    ],
)
def test_what_cannot_be(toy_onnx: Path, arguments: tuple[str, ...], sentence: str) -> None:
    result = run("--reference", "toy.onnx", "--model", "toy.onnx", *arguments)
    assert result.exit_code == 1 and sentence in result.stderr and result.stderr.count("\n") == 1


def test_the_page(toy_onnx: Path) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed (mtmamba[eval])")
    damaged(toy_onnx, "bad.onnx", "semseg", 1.5)
    result = run("--reference", "toy.onnx", "--model", "bad.onnx", "--html", "page.html")
    assert result.exit_code == 1 and "wrote page.html" in result.stdout
    page = Path("page.html").read_text(encoding="utf-8")
    assert "bad.onnx does not agree with toy.onnx" in page
    assert page.count("<img ") == 4 * 6 == page.count("data:image/png;base64,")
    assert not re.search(r"https?://|<script|src=\"(?!data:)", page), "the page needs something beside itself"
    assert page.count("FAIL") == 2  # semseg: by the difference, by agreement
    found = answer("--reference", "toy.onnx", "--model", "toy.onnx", "--html", "page.html")
    assert found["html"] == "page.html" and "toy.onnx agrees with toy.onnx" in Path("page.html").read_text()


@pytest.mark.parametrize("task", ["semseg", "sal", "depth", "normals", "edge"])
def test_a_model_that_answers_nan(toy_onnx: Path, task: str) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed (mtmamba[eval])")
    damaged(toy_onnx, "bad.onnx", task, np.inf)
    result = run("--reference", "toy.onnx", "--model", "bad.onnx", "--images", 1, "--html", "page.html")
    assert result.exit_code == 1 and f"{task} (" in result.stderr and "values are NaN or infinite)" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "are NaN or infinite: FAIL" in result.stdout
    assert Path("page.html").read_text(encoding="utf-8").count("<img ") == 4 * 6


def rewritten(path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(path))
    return path


def weights_as(kind: int) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        """One weight is stored in another type and cast back."""
        node, weight = model.graph.node[0], model.graph.initializer[0]
        cast = helper.make_node("Cast", [weight.name], ["cast"], to=TensorProto.FLOAT)
        small = helper.make_tensor(weight.name, kind, weight.dims, numpy_helper.to_array(weight).ravel())
        weight.CopyFrom(small)
        node.input[1] = "cast"
        model.graph.node.insert(0, cast)

    return edit


def quantised(model: onnx.ModelProto) -> None:
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.int8(0), "zero")]
    )
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]))
    model.graph.node[2].input[0] = "dq"


@pytest.mark.parametrize(
    ("edit", "precision"),
    [
        (lambda model: None, "fp32"),
        (weights_as(TensorProto.FLOAT16), "fp16"),
        (weights_as(TensorProto.BFLOAT16), "bf16"),
        (quantised, "int8"),
    ],
    ids=["fp32", "fp16", "bf16", "int8"],
)
def test_the_precision_is_read_off_the_file(
    toy_onnx: Path, edit: Callable[[onnx.ModelProto], None], precision: str
) -> None:
    with open_backend(rewritten(toy_onnx, edit)) as backend:
        assert precision_of(backend) == precision
        backend.device = "GPU (CUDA)"
        assert precision_of(backend) == ("tf32" if precision == "fp32" else precision)
    assert precision in TOLERANCES


def test_a_checkpoint_is_run_at_the_models_size(
    here: Path, make_toy: Callable[..., Path], toy_metadata_of: Callable[..., ModelMetadata]
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (mtmamba[model])")
    from mtmamba import MTMamba, preset, save_checkpoint

    torch.manual_seed(0)
    save_checkpoint(Path("best.pth"), MTMamba(preset("synthetic", "nano")))  # of 192x256
    make_toy(Path("best.onnx"), size=(32, 64))
    result = run("--images", 1)  # a toy is no export of it, and it shows
    assert result.exit_code == 1 and "random 32x64" in result.stdout
    assert result.stdout.startswith("reference: best.pth\nmodel: best.onnx\n")
    assert "best.onnx does not agree with best.pth" in result.stderr
    assert answer("--model", "best.pth", "--images", 1)["candidate"]["precision"] == "fp32"
