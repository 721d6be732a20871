"""Exports whose batch is free (`mtm-export --batch 1-4`): the file runs at any batch of its range, in every precision and with
pictures at its ends, and says the range."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result

from mtmamba import MTMamba, load_checkpoint, preset, save_checkpoint
from mtmamba.errors import MtmError
from mtmamba.export import verify
from mtmamba.export.cli import main
from mtmamba.export.graph import element_counts
from mtmamba.export.metadata import read_metadata
from mtmamba.export.picture_io import with_picture_io
from mtmamba.export.precision import to_precision
from mtmamba.export.torch_to_onnx import export_model
from mtmamba.metadata import INPUT_NAME, ModelMetadata
from mtmamba.runtime.calibrate import calibrate
from mtmamba.runtime.onnx_model import load_onnx


def run(model: onnx.ModelProto, images: np.ndarray, *, fp8: bool = False) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    if fp8:  # before 1.31 ONNX Runtime moves transposes to FP8's side, where it has none
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {INPUT_NAME: images}), strict=True))


def first_dims(model: onnx.ModelProto) -> set[str]:
    return {value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output)}


@pytest.mark.parametrize("name", ["mtmamba_nyud_tiny", "mtmamba_plus_nyud_tiny"])
def test_every_batch_of_the_range_is_pytorchs(golden_folder: Path, name: str) -> None:
    model = load_checkpoint(golden_folder / f"{name}.pth.tar")
    exported = export_model(model, input_size=(50, 70), batch=(1, 5))
    assert first_dims(exported) == {"batch"}
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 3, 5):
        image = verify.random_image(np.random.default_rng(batch), (batch, 3, 50, 70))
        with torch.no_grad():
            expected = model(torch.from_numpy(image))
        for task, found in zip(expected, session.run(list(expected), {INPUT_NAME: image}), strict=True):
            np.testing.assert_allclose(found, expected[task].numpy(), rtol=0, atol=1e-4, err_msg=f"{task}, {batch}")


def test_a_model_that_answers_larger_than_it_is_asked() -> None:
    torch.manual_seed(0)
    model = MTMamba(preset("cityscapes", "nano")).eval()
    exported = export_model(model, input_size=(32, 64), batch=(2, 3))
    assert all(difference.passed for difference in verify.compare(model, exported, images=1))


def test_the_check_runs_the_smallest_and_the_largest(free_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = verify.random_image

    def noted(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        seen.append(shape[0])
        return original(rng, shape)

    monkeypatch.setattr(verify, "random_image", noted)
    config = load_onnx(free_onnx).metadata.config
    verify.compare(MTMamba(config).eval(), free_onnx, images=2)
    assert sorted(seen) == [1, 1, 4, 4]


def test_fp16_with_pictures_at_the_ends(free_onnx: Path) -> None:
    raw = onnx.load(str(free_onnx))
    final = with_picture_io(to_precision(raw, "fp16")[0])
    onnx.checker.check_model(final)
    assert first_dims(final) == {"batch"} and read_metadata(final, "final").min_batch == 1
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    whole = run(with_picture_io(raw), pictures)
    for batch in (1, 3, 4):
        found = run(final, pictures[:batch])
        assert found["semseg"].dtype == np.uint8 and found["depth"].dtype == np.float16
        assert (found["semseg"] == whole["semseg"][:batch]).mean() > 0.95
        np.testing.assert_allclose(found["depth"], whole["depth"][:batch], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantised(free_onnx: Path, precision: str) -> None:
    model = load_onnx(free_onnx)
    images = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    calibration = calibrate(model, [images, images[:1]], method="entropy")
    assert calibration.images == 5
    low, report = to_precision(model.proto, precision, calibration)
    assert report["quantised_nodes"] > 20
    expected = run(model.proto, images)
    for batch in (1, 4):
        for task, found in run(low, images[:batch], fp8=precision == "fp8").items():
            difference = found - expected[task][:batch]
            assert np.sqrt((difference**2).mean()) < 0.2 * expected[task].std(), task


def test_elements_are_counted_at_the_batch_that_runs(free_onnx: Path, small_onnx: Path) -> None:
    free, fixed = onnx.load(str(free_onnx)), onnx.load(str(small_onnx))

    def products(model: onnx.ModelProto, batch: int) -> list[int]:
        counts = element_counts(model, batch)
        return sorted(counts[node.output[0]] for node in model.graph.node if node.op_type == "MatMul")

    assert len(products(fixed, 1)) > 50
    for batch in (1, 4):  # those of windows among them: their first dimension is a multiple of the batch
        assert products(free, batch) == [batch * count for count in products(fixed, 1)]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.mark.parametrize(("batch", "least", "most"), [("1-3", 1, 3), ("2-2", 2, 2)])
def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: str, least: int, most: int) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "best.pth", MTMamba(preset("nyudv2", "nano", ("depth", "edge"))))
    result = invoke("--size", "32x32", "--batch", batch, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["min_batch"], answer["batch"]) == (least, most)
    metadata = load_onnx(tmp_path / "best.onnx").metadata
    assert (metadata.smallest_batch, metadata.batch) == (least, most)
    assert metadata.min_batch == (least if least < most else None)


@pytest.mark.parametrize("batch", ["0-4", "8-1", "1-2-3", "-1", "1-", "some", "0"])
def test_a_wrong_range_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(f"--batch={batch}")
    assert result.exit_code == 2
    sentence = f"expected a number of images of at least 1 or a range of them, such as 8 or 1-8, found '{batch}'"
    assert sentence in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("batch", [0, (0, 4), (8, 1)])
def test_a_wrong_range_in_python(free_onnx: Path, batch: int | tuple[int, int]) -> None:
    model = MTMamba(load_onnx(free_onnx).metadata.config)
    with pytest.raises(MtmError, match="a batch of at least 1, or a range of them from the smallest to the largest"):
        export_model(model, batch=batch)


class TestMetadata:
    def test_a_file_without_the_range_has_one_batch(self, free_onnx: Path) -> None:
        values = load_onnx(free_onnx).metadata.to_dict()
        assert (values["min_batch"], values["batch"]) == (1, 4)
        del values["min_batch"]
        old = ModelMetadata.from_dict(values, "old.onnx")
        assert (old.smallest_batch, old.batch, old.batch_text) == (4, 4, "4")

    @pytest.mark.parametrize("least", [0, 4, 5, "1", 1.5])
    def test_a_damaged_range(self, free_onnx: Path, least: object) -> None:
        values = {**load_onnx(free_onnx).metadata.to_dict(), "min_batch": least}
        with pytest.raises(MtmError, match=r"x\.onnx: damaged mtmamba metadata"):
            ModelMetadata.from_dict(values, "x.onnx")
