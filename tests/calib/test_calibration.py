"""calibration.json and the state file: what is written is read again, what is damaged or foreign is refused."""

import json

import numpy as np
import pytest
from onnx import helper

from mtmamba.calib.calibration import Calibration, Range, nodes_beyond_fp16, read_calibration
from mtmamba.calib.ranges import Ranges
from mtmamba.errors import MtmError
from mtmamba.files import sha256


def calibration(digest: str = "0" * 64) -> Calibration:
    return Calibration(
        onnx="best.onnx",
        onnx_sha256=digest,
        method="percentile",
        percentile=99.9,
        images=3,
        sources=("images",),
        versions={"onnx": "1"},
        ranges={"a": Range(low=-1.5, high=2.0, clip=1.25), "b": Range(low=0.0, high=7.0)},
        kept={"fp16": {"n": "because"}, "int8": {"m": "so"}},
    )


def test_round_trip(tmp_path):
    made = calibration()
    made.write(tmp_path / "calibration.json")
    text = (tmp_path / "calibration.json").read_text()
    assert Calibration.from_json(text, "x") == made
    assert '"low": -1.5' in text, "people read this"


def test_belongs_to_one_file(tmp_path):
    model = tmp_path / "best.onnx"
    model.write_bytes(b"a model")
    calibration(sha256(model)).write(tmp_path / "calibration.json")
    assert read_calibration(tmp_path / "calibration.json", model).images == 3
    model.write_bytes(b"another model")
    with pytest.raises(
        MtmError, match=r"expected a calibration of .*best\.onnx .*found one of best\.onnx .*mtm-calibrate"
    ):
        read_calibration(tmp_path / "calibration.json", model)


DAMAGES = {
    "format": lambda v: v.update(format=2),
    "missing": lambda v: v.pop("ranges"),
    "infinite": lambda v: v["ranges"]["a"].update(high=float("inf")),
    "upside down": lambda v: v["ranges"]["a"].update(low=3.0),
    "no number": lambda v: v["ranges"]["a"].update(low="x"),
    "negative clip": lambda v: v["ranges"]["a"].update(clip=-1.0),
    "list of ranges": lambda v: v.update(ranges=[1]),
    "precision": lambda v: v["kept"].update(int3={}),
    "method": lambda v: v.update(method="guess"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused(damage):
    values = json.loads(calibration().to_json())
    DAMAGES[damage](values)
    with pytest.raises(MtmError, match="f.json: .*mtm-calibrate"):
        Calibration.from_json(json.dumps(values), "f.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_other_text_is_refused(text):
    with pytest.raises(MtmError, match="f.json: expected a calibration"):
        Calibration.from_json(text, "f.json")


def test_plans():
    made = calibration()
    assert made.plan("fp16").reason("n", "Mul") == "because"
    assert made.plan("fp16").reason("m", "Mul") is None
    assert made.plan("fp16").reason("x", "Softmax"), "the built-in plan holds too"
    assert made.plan("bf16").reason("n", "Mul") is None, "bfloat16 has FP32's range"
    assert made.plan("int8").reason("n", "Mul") == "because", "what is not quantised is FP16"
    assert made.plan("int8").not_quantised == {"m": "so"}


def graph_of(*nodes):
    return helper.make_model(helper.make_graph(list(nodes), "g", [], []))


@pytest.mark.parametrize(
    ("largest", "stays"), [(1.0, False), (16000.0, False), (17000.0, True), (1e6, True), (1e-5, True), (0.0, False)]
)
def test_ranges_near_the_ends_of_fp16_stay(largest, stays):
    model = graph_of(
        helper.make_node("Mul", ["x", "x"], ["a"], name="maker"),
        helper.make_node("Neg", ["a"], ["b"], name="reader"),
        helper.make_node("Neg", ["b"], ["c"], name="other"),
    )
    one = Range(low=-1.0, high=1.0)
    kept = nodes_beyond_fp16(model, {"x": one, "a": Range(low=-largest, high=0.0), "b": one, "c": one})
    assert set(kept) == ({"maker", "reader"} if stays else set())
    assert all("a " in reason for reason in kept.values())


def gathered(images: int) -> Ranges:
    ranges, rng = Ranges(["a", "b"], ["b"]), np.random.default_rng(0)
    for _ in range(images):
        values = rng.normal(size=50).astype(np.float32)
        ranges.add(np.array([-1.0, values.min()]), np.array([2.0, values.max()]), {"b": values}, 1)
    return ranges


def test_state_round_trip(tmp_path):
    key = {"onnx_sha256": "x", "sources": ["images"]}
    gathered(4).save(tmp_path / "s.npz", key)
    taken_up = Ranges(["a", "b"], ["b"])
    assert taken_up.resume(tmp_path / "s.npz", key)
    assert taken_up.images == 4
    assert taken_up.result("percentile", 99.0) == gathered(4).result("percentile", 99.0)


def test_foreign_and_damaged_states_are_not_taken_up(tmp_path):
    key = {"onnx_sha256": "x"}
    gathered(4).save(tmp_path / "s.npz", key)
    assert not Ranges(["a", "b"], ["b"]).resume(tmp_path / "s.npz", {"onnx_sha256": "y"})
    assert not Ranges(["a", "c"], ["c"]).resume(tmp_path / "s.npz", key)
    assert not Ranges(["a", "b"], []).resume(tmp_path / "s.npz", key)
    assert not Ranges(["a", "b"], ["b"]).resume(tmp_path / "none.npz", key)
    whole = (tmp_path / "s.npz").read_bytes()
    for part in (b"", whole[: len(whole) // 2], b"x" * 100):
        (tmp_path / "s.npz").write_bytes(part)
        assert not Ranges(["a", "b"], ["b"]).resume(tmp_path / "s.npz", key)


def test_values_that_are_not_finite_are_named():
    ranges = Ranges(["a", "b"], [])
    with pytest.raises(MtmError, match="leaves FP32 at b"):
        ranges.add(np.array([0.0, -np.inf]), np.array([0.0, 1.0]), {}, 1)


def test_no_image_is_an_error():
    with pytest.raises(MtmError, match="at least one image"):
        Ranges(["a"], []).result("max", 100.0)
