"""mtm-report: what is on the page, its verdicts and exit status, results read from files, and files that are no results."""

import base64
import json
import re
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import commands
import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from mtmamba.files import sha256
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime import bench_cli, eval_cli, parity_cli
from mtmamba.runtime.report_cli import main
from mtmamba.runtime.sidecar import Sidecar, sidecar_path

QUICK = ("--calls", 2, "--images", 2)
SCORED = ("--data", "synthetic", "--limit", 2, "--edge-thresholds", 3, "--workers", 0)


class Reader(HTMLParser):
    """A page's text, headings, sources, and the names of its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", set[str]()
        self.sources: list[str] = []
        self.headings: list[str] = []
        self._heading = False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._heading = tag in ("h2", "h3")
        self.sources += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._heading and data.strip():
            self.headings.append(data)
            self._heading = False


pytestmark = pytest.mark.usefixtures("here")
run, answer = partial(commands.run, main), partial(commands.answer, main)


def save(command: Any, path: str, *arguments: object) -> Path:
    result = CliRunner().invoke(command, [*map(str, arguments), "--json"])
    Path(path).write_text(result.stdout)
    return Path(path)


def damaged(path: Path, target: str, factor: float = 1.05) -> Path:
    model = onnx.load(str(path))
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "depth.w")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(factor), weights.name))
    onnx.save(model, target)
    return Path(target)


def make_engine(model: Path, name: str, metadata: ModelMetadata, **changes: Any) -> Path:
    """A file that claims to be an engine, with its sidecar: enough where nothing can run it."""
    path = Path(name)
    path.write_bytes(b"engine")
    plan = {"fp32_nodes": [{"name": "n", "op": "Softmax", "reason": "sums are long"}] * 3, "fp16_nodes": 7, "casts": 2}
    values: dict[str, Any] = {
        "flavour": "tensorrt", "tensorrt_version": "10.9", "compute_capabilities": ("8.7",), "plugin_hash": "ab" * 32,
        "plugin_ops": ("SelectiveScan2D",), "onnx_path": model.name, "onnx_sha256": sha256(model),
        "engine_sha256": sha256(path), "engine_bytes": 6, "precision": "fp16", "metadata": metadata,
        "precision_plan": plan, "options": ("--workspace", "64"), **changes,
    }  # fmt: skip
    sidecar_path(path).write_text(Sidecar(**values).to_json())
    return path


def test_a_whole_report(toy_onnx: Path, photo: np.ndarray) -> None:
    Path("photos").mkdir()
    for index in range(3):
        cv2.imwrite(f"photos/p{index}.png", np.roll(photo, index * 9, axis=1))
    same = damaged(toy_onnx, "same.onnx", factor=1.0)
    result = run(toy_onnx, "--reference", same, "--source", "photos", *SCORED, *QUICK)
    assert result.exit_code == 0 and result.stderr == "", result.output
    lines = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()}
    assert lines == {
        "Export": "passed", "Engines": "not", "Parity": "passed", "Metrics": "measured", "Speed": "measured",
        "wrote": "toy.report.html",
    }  # fmt: skip
    html = Path("toy.report.html").read_text()
    page = Reader(html)
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not page.tags & {"script", "link", "iframe", "object"} and "url(" not in html and "@import" not in html
    for source in page.sources:
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(source.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None and picture.std() > 1
    sections = ["Summary", "Model", "Export", "Parity", "Predictions", "Metrics", "Speed", "Machine and versions"]
    assert [heading for heading in page.headings if heading in sections] == sections
    assert "toy.onnx agrees with same.onnx" in page.headings and "Boundaries, toy.onnx" in page.headings
    for text in ("1,081,800", sha256(toy_onnx), "2 images of photos", "p0.png", "2 pictures of synthetic val"):
        assert text in page.text, text
    assert "Multi-task delta of toy.onnx against same.onnx: 0.000 %" in page.text
    assert len(page.sources) >= 6 * 4 + 2 + 6 * 3 + 1, "worst images, samples, exhibits, speed"


def test_a_model_that_is_another_fails_and_has_its_page(toy_onnx: Path) -> None:
    bad = damaged(toy_onnx, "bad.onnx")
    found = answer(bad, "--reference", toy_onnx, *QUICK, "-o", "out.html", status=1)
    assert found["parity"]["verdict"] == "failed" and found["export"]["verdict"] == "passed"
    assert found["error"].startswith("parity: bad.onnx does not agree with toy.onnx in depth (difference ")
    assert found["error"].endswith("out.html has the figures")
    assert found["metrics"]["verdict"] == "not run" and found["speed"]["verdict"] == "measured"
    assert "bad.onnx does not agree with toy.onnx" in Reader(Path("out.html").read_text()).headings
    loose = ("--tolerance", "depth.difference=1", "--tolerance", "depth.depth=99")
    assert answer(bad, "--reference", toy_onnx, *QUICK, *loose)["parity"]["verdict"] == "passed"


def test_alone_it_compares_with_nothing(toy_onnx: Path) -> None:
    found = answer(*QUICK)
    assert found["model"]["parameters"] == 1_081_800
    assert found["report"] == "toy.report.html" and found["export"]["verdict"] == "passed"
    assert found["parity"]["verdict"] == found["engines"]["verdict"] == "not run"
    assert "name its checkpoint with --reference" in found["parity"]["summary"]
    assert "No pictures: name some" in Reader(Path("toy.report.html").read_text()).text


def test_an_engine_without_a_gpu(toy_onnx: Path, metadata: ModelMetadata) -> None:
    make_engine(toy_onnx, "toy.fp16.engine", metadata)
    make_engine(toy_onnx, "other.engine", metadata, onnx_sha256="0" * 64)
    Path("build.json").write_text(
        json.dumps({"engine": "out/toy.fp16.engine", "layers": 321, "plugin_layers": 12, "seconds": 4.5})
    )
    found = answer(toy_onnx, *QUICK, "--build", "build.json")
    assert [Path(engine["engine"]).name for engine in found["engines"]["values"]] == ["toy.fp16.engine"], (
        "not the other model's"
    )
    assert found["engines"]["summary"].endswith("not run here: toy.fp16.engine")
    text = Reader(Path("toy.report.html").read_text()).text
    for words in ("compute capability 8.7", "FP16", "sources abababababab", "no: backend tensorrt: expected an NVIDIA",
                  "321 as parsed, 12 of them plugins", "3 nodes stayed FP32, 7 fp16 nodes, 2 casts",
                  "sums are long"):  # fmt: skip
        assert words in text, words
    found = answer(toy_onnx, *QUICK, "--engine", "other.engine", status=1)
    assert "other.engine: it was made from another file" in found["error"]
    Path("toy.fp16.engine").write_bytes(b"engime")
    found = answer(toy_onnx, *QUICK, status=1)
    assert "its bytes are not those its sidecar was written for" in found["error"]


def test_results_of_the_other_commands(toy_onnx: Path) -> None:
    bad = damaged(toy_onnx, "bad.onnx")
    parity = save(parity_cli.main, "p.json", "--reference", toy_onnx, "--model", bad, "--images", 2)
    score = save(eval_cli.main, "e.json", toy_onnx, *SCORED)
    bench = save(bench_cli.main, "b.json", toy_onnx, bad, "--calls", 3, "--rounds", 1)
    differences = [{"task": "depth", "max_abs": 2e-6, "rms": 1e-7, "tolerance": 1e-4, "passed": True}]
    Path("x.json").write_text(json.dumps({"onnx": "toy.onnx", "differences": differences}))
    saved = ("--parity", parity, "--eval", score, "--bench", bench, "--export", "x.json")
    found = answer(toy_onnx, *saved, status=1)
    told, timed = json.loads(parity.read_text()), json.loads(bench.read_text())["models"]
    assert found["parity"]["values"][0]["tasks"] == told["tasks"] and not told["passed"]
    measured = json.loads(score.read_text())
    assert found["metrics"]["values"][0]["figures"] == measured["figures"]
    assert [row["speed"]["call"] for row in found["speed"]["values"]] == [row["call"] for row in timed]
    text = Reader(Path("toy.report.html").read_text()).text
    assert "bad.onnx does not agree with toy.onnx" in text and "What mtm-export found (x.json)" in text
    assert f"{measured['figures']['normals']['mErr']:.2f}" in text and "2.00e-06" in text
    Path("x.json").write_text(json.dumps({"differences": [{**differences[0], "passed": False}]}))
    assert "differs from PyTorch in depth" in answer(toy_onnx, *QUICK, "--export", "x.json", status=1)["error"]


def _without(values: Any, *path: Any) -> Any:
    copy = json.loads(json.dumps(values))
    place = copy
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return copy


def _with(values: Any, value: Any, *path: Any) -> Any:
    copy = json.loads(json.dumps(values))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


WRONG: dict[str, Callable[[Any], Any]] = {
    "no tasks": lambda good: _without(good, "tasks"),
    "no task in it": lambda good: _with(good, {}, "tasks"),
    "a list": lambda good: [good],
    "a failure": lambda good: {"error": "expected a GPU, found none"},
    "a number as text": lambda good: _with(good, "0.1", "tasks", "depth", "rms"),
    "a task of another model": lambda good: _with(good, good["tasks"]["depth"], "tasks", "flow"),
    "no checks": lambda good: _with(good, [], "tasks", "edge", "checks"),
    "an unknown precision": lambda good: _with(good, "fp7", "candidate", "precision"),
    "images below 0": lambda good: _with(good, -1, "images"),
    "a name that is a list": lambda good: _with(good, ["x"], "reference", "model"),
    "a check of what": lambda good: _with(good, 3, "tasks", "depth", "checks", 0),
}


@pytest.fixture(scope="module")
def good_parity() -> Any:
    checks = {"depth": "depth", "edge": "agreement"}
    tasks = {
        name: {
            "max_abs": 1e-6, "rms": 1e-7, "rms_percent": 1e-5, "cosine": 1.0, "scale": 3.0,
            "not_finite": 0, "figures": {figure: 1.0},
            "checks": [{"figure": f, "allowed": 1.0, "needed": 1.0} for f in ("difference", figure)],
            "worst_image": "a", "passed": True,
        }
        for name, figure in checks.items()
    }  # fmt: skip
    side = {"model": "a.pth", "backend": "torch", "device": "CPU"}
    candidate = {**side, "precision": "fp32"}
    return {"reference": side, "candidate": candidate, "source": "x", "images": 2, "passed": True, "tasks": tasks}


def test_the_good_one_is_good(toy_onnx: Path, good_parity: Any) -> None:
    Path("p.json").write_text(json.dumps(good_parity))
    assert answer(toy_onnx, *QUICK, "--parity", "p.json")["parity"]["verdict"] == "passed"


@pytest.mark.parametrize("name", WRONG)
def test_a_parity_result_that_is_none(toy_onnx: Path, good_parity: Any, name: str) -> None:
    Path("p.json").write_text(json.dumps(WRONG[name](good_parity)))
    _is_one_sentence(run(toy_onnx, "--parity", "p.json"), "mtm-parity", "p.json")


@pytest.mark.parametrize("option", ["parity", "eval", "bench", "export", "build"])
@pytest.mark.parametrize("text", ["{", "[]", "{}", "3", '{"models": [{}]}', '{"tasks": 1, "figures": 1}', "\xff\x00"])
def test_text_that_is_no_result(toy_onnx: Path, option: str, text: str) -> None:
    Path("r.json").write_bytes(text.encode("latin-1"))
    command = {"build": "mtm-build-engine"}.get(option, f"mtm-{option}")
    _is_one_sentence(run(toy_onnx, f"--{option}", "r.json"), command, "r.json")


def _is_one_sentence(result: Result, command: str, name: str) -> None:
    assert result.exit_code == 1 and result.stdout == "", result.output
    expected = rf"error: {name}: expected what {command} --json prints, found .*; write it again with {command} .*\n"
    assert re.fullmatch(expected, result.stderr), result.stderr
    assert not list(Path.cwd().glob("*.html"))


def test_bad_options_and_files(toy_onnx: Path) -> None:
    assert run(toy_onnx, "--images", 0).exit_code == run(toy_onnx, "--data", "imagenet").exit_code == 2
    result = run(toy_onnx, "--engine", "gone.engine")
    assert result.exit_code == 1 and "gone.engine: expected a TensorRT engine file, found nothing" in result.stderr
    result = run(toy_onnx, "-o", toy_onnx)
    assert result.exit_code == 1 and "expected an output name ending in .html" in result.stderr
    result = run(toy_onnx, "--source", "gone.mp4")
    assert result.exit_code == 1 and "gone.mp4" in result.stderr and not list(Path.cwd().glob("*.html"))
