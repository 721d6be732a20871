"""mtm-calibrate: the ranges are the model's, work that was stopped goes on, and the file says what it should."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from mtmamba.calib.calibration import read_calibration
from mtmamba.errors import MtmError
from mtmamba.runtime import calibrate as module
from mtmamba.runtime.calibrate import Observer, calibrate
from mtmamba.runtime.calibrate_cli import batches, main
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.runtime.sources import open_source

IMAGES = 6


@pytest.fixture(scope="module")
def model(small_onnx):
    return load_onnx(small_onnx)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 40 + 30 * index, (32, 32, 3), dtype=np.uint8))
    return folder


def images_of(model, folder):
    return list(batches(model, [open_source(folder)], 100))


def outputs_of(model, names, image):
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names if n not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, {"image": image})


def test_ranges_are_those_of_the_tensors(model, pictures):
    images = images_of(model, pictures)
    made = calibrate(model, images, method="max")
    assert made.images == IMAGES
    names = [
        node.output[0] for node in model.proto.graph.node if node.op_type in ("MatMul", "SelectiveScan2D", "Softmax")
    ]
    assert len(names) > 40
    found = [outputs_of(model, names, image) for image in images]
    for index, name in enumerate(names):
        values = np.stack([each[index] for each in found])
        assert made.ranges[name].low == pytest.approx(values.min(), rel=1e-4, abs=1e-6), name
        assert made.ranges[name].high == pytest.approx(values.max(), rel=1e-4, abs=1e-6), name
        assert made.ranges[name].clip is None


def test_groups_of_activations_change_nothing(model, pictures, monkeypatch):
    images = images_of(model, pictures)[:2]
    whole = calibrate(model, images, method="percentile", percentile=99.0)
    monkeypatch.setattr(module, "ACTIVATION_BYTES", 30_000)
    observer = Observer(model.proto, histograms=True)
    assert len(observer._groups) > 3
    assert calibrate(model, images, method="percentile", percentile=99.0) == whole
    clipped = [item for item in whole.ranges.values() if item.clip is not None]
    assert len(clipped) > 30
    assert any(item.clip < 0.9 * item.largest for item in clipped)
    assert all(item.clip <= item.largest for item in clipped)


def test_interrupted_work_goes_on(model, pictures, tmp_path):
    images, state = images_of(model, pictures), tmp_path / "state.npz"

    def stopping(after):
        yield from images[:after]
        raise KeyboardInterrupt

    for after in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, stopping(after), method="entropy", state=state)
        assert state.exists()
    ran = []
    resumed = calibrate(model, images, method="entropy", state=state, on_images=ran.append)
    assert ran == [5, 6], "the first four were not run again"
    assert resumed == calibrate(model, images, method="entropy")
    assert not state.exists()


def test_command(small_onnx, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("best.onnx").write_bytes(small_onnx.read_bytes())
    result = CliRunner().invoke(main, [str(pictures), "--method", "max", "--count", "4"])
    assert result.exit_code == 0, result.stderr
    assert "using best.onnx" in result.stdout
    assert "nothing comes near FP16's limits" in result.stdout
    made = read_calibration(Path("calibration.json"), Path("best.onnx"))
    assert (made.images, made.method) == (4, "max")
    assert set(made.versions) == {"mtmamba", "onnx", "onnxruntime"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.onnx", "calibration.json"]


def test_command_speaks_json_and_refuses(small_onnx, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    result = run(main, [str(pictures), "--onnx", str(small_onnx), "--method", "max", "--count", "1", "--json"])
    answer = json.loads(result.stdout)
    assert (answer["images"], answer["fp32_nodes"]) == (1, {})
    assert run(main, []).exit_code == 2
    assert run(main, [str(pictures), "--percentile", "20"]).exit_code == 2
    missing = run(main, ["nowhere", "--onnx", str(small_onnx)])
    assert missing.exit_code == 1
    assert "found nothing there" in missing.stderr


def test_interrupted_command_says_how_to_go_on(small_onnx, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original = Observer.add

    def add(self, images):
        if self.ranges.images == 2:
            raise KeyboardInterrupt
        original(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Observer, "add", add)
        result = CliRunner().invoke(main, [str(pictures), "--onnx", str(small_onnx), "--method", "max"])
    assert result.exit_code == 130
    assert "interrupted after 2 images; the same command goes on from there" in result.stdout
    assert Path("calibration.state.npz").exists()
    result = CliRunner().invoke(main, [str(pictures), "--onnx", str(small_onnx), "--method", "max"])
    assert result.exit_code == 0, result.stderr
    assert read_calibration(Path("calibration.json"), small_onnx).images == IMAGES
    assert not Path("calibration.state.npz").exists()


def test_no_images(model):
    with pytest.raises(MtmError, match="at least one image"):
        calibrate(model, [], method="max")


def test_videos_and_folders_share_the_images_evenly(model, pictures, make_video, tmp_path):
    video = open_source(make_video(tmp_path / "v.mp4", frames=20, size=(32, 32)))
    found = list(batches(model, [video, open_source(pictures)], 8))
    assert len(found) == 8
    assert {batch.shape for batch in found} == {(1, 3, 32, 32)}
    greys = [float(batch[0, 0].mean()) for batch in found[:4]]
    assert greys == sorted(greys)
    assert greys[-1] - greys[0] > 3, "from the whole video, not its start"
