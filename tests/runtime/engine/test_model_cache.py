"""What mtm-run makes for itself: built once, kept under a key of everything that matters, whole or not at all."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from mtmamba import ModelConfig, MTMamba
from mtmamba.cache import CACHE_VARIABLE, cache_dir
from mtmamba.checkpoint import save_checkpoint
from mtmamba.errors import MtmError
from mtmamba.runtime import cache_cli, gpu, model_cache, model_choice, run_cli, sidecar, toolchain, trt
from mtmamba.runtime.backends import open_backend
from mtmamba.runtime.model_cache import Recipe, engine_of, entries, onnx_of
from mtmamba.runtime.model_choice import choose, made
from mtmamba.runtime.plugin import PluginLibrary
from mtmamba.runtime.trt import TensorRT

GPU = gpu.Gpu(index=0, name="NVIDIA test 4090", compute_capability=(8, 9), memory_mib=1024)


def quiet(what: str, share: float) -> None: ...


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, and a cache of this test's own (the plugin library stays in the one of all tests)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "find_gpus", list)
    monkeypatch.setattr(model_cache, "FOLDER", f"models-{tmp_path.parent.name}-{tmp_path.name}")
    yield tmp_path
    shutil.rmtree(cache_dir(model_cache.FOLDER))


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_gpus", lambda: [GPU])


def smallest() -> MTMamba:
    return MTMamba(
        ModelConfig(
            dataset="synthetic", tasks=("depth",), embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8),
            window_size=4, input_size=(32, 32), expand=1, d_state=4,
        )
    )  # fmt: skip


def test_a_checkpoint_is_exported_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing: mtm-run best.pth --backend onnxruntime, twice."""
    save_checkpoint(folder / "best.pth", smallest())
    cv2.imwrite("photo.png", np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    answers = []
    for _ in range(2):
        result = CliRunner().invoke(run_cli.main, ["photo.png", "--backend", "onnxruntime", "--json"])
        assert result.exit_code == 0, result.output
        answers.append(json.loads(result.stdout))
        monkeypatch.setattr("mtmamba.export.checkpoint_to_onnx.export_checkpoint", None)  # not again
    assert answers[0]["model"] == answers[1]["model"] and answers[0]["model"].endswith("/best.onnx")
    assert (Path(answers[0]["made_from"]).name, answers[0]["backend"]) == ("best.pth", "onnxruntime")
    [entry] = entries()
    assert entry.facts["made"] == "export" and set(entry.facts["versions"]) >= {"torch", "onnx"}
    assert sorted(path.name for path in folder.iterdir()) == ["best.pth", "photo.mtm.png", "photo.png"]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An export that writes a few bytes; the names of what was exported."""
    calls: list[str] = []

    def export(checkpoint: Path, target: Path, **options: Any) -> None:
        options["on_step"](1)
        calls.append(checkpoint.name)
        target.write_bytes(f"{len(calls)}".encode())

    monkeypatch.setattr("mtmamba.export.checkpoint_to_onnx.export_checkpoint", export)
    return calls


def test_everything_that_matters_is_in_the_key(
    folder: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "best.pth.tar"
    path.write_bytes(b"weights")
    steps: list[str] = []
    first = onnx_of(path, Recipe(), lambda what, share: steps.append(what))
    assert first.name == "best.onnx" and steps == ["exporting (best.pth.tar)"]
    assert onnx_of(path, Recipe(precision="fp16", device=3), quiet) == first, "an export knows neither"
    made_here = {first}
    made_here.add(onnx_of(path, Recipe(picture_io=True), quiet))
    monkeypatch.setattr(model_cache, "code_hash", lambda: "other")
    made_here.add(onnx_of(path, Recipe(), quiet))
    path.write_bytes(b"other weights")
    made_here.add(onnx_of(path, Recipe(), quiet))
    assert len(made_here) == 4 == len(counted) == len(list(entries()))
    assert model_cache.clear() == 4 and not list(entries())


def test_rebuild(folder: Path, counted: list[str]) -> None:
    path = folder / "best.pth"
    path.write_bytes(b"weights")
    first = onnx_of(path, Recipe(), quiet)
    assert first.read_bytes() == b"1"
    assert onnx_of(path, Recipe(rebuild=True), quiet) == first and first.read_bytes() == b"2"
    assert [child.name for child in first.parent.parent.iterdir()] == [first.parent.name], "something was left behind"


def test_a_damaged_model_is_made_again(folder: Path, counted: list[str], caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "best.pth"
    path.write_bytes(b"weights")
    first = onnx_of(path, Recipe(), quiet)
    first.write_bytes(b"damaged")
    assert onnx_of(path, Recipe(), quiet) == first and first.read_bytes() == b"2"
    assert "it is not what was put there, so it is made again" in caplog.text
    (first.parent / model_cache.SUM_FILE).unlink()  # as an older mtmamba left it
    assert onnx_of(path, Recipe(), quiet) == first and len(counted) == 2


def test_two_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "best.pth"
    path.write_bytes(b"weights")
    both = Barrier(2)

    def export(checkpoint: Path, target: Path, **options: Any) -> None:
        both.wait(20)  # both find nothing, both make it
        target.write_bytes(b"model")
        both.wait(20)

    set_aside, replaced = model_cache._set_aside, []

    def slow_set_aside(path: Path) -> None:
        replaced.append(path)
        time.sleep(0.3)  # the other looks meanwhile
        set_aside(path)

    monkeypatch.setattr(model_cache, "_set_aside", slow_set_aside)
    monkeypatch.setattr("mtmamba.export.checkpoint_to_onnx.export_checkpoint", export)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: onnx_of(path, Recipe(), quiet), range(2)))
    assert found[0] == found[1] and found[0].read_bytes() == b"model"
    assert len(replaced) == 1, "the second took away what the first had just put there"
    assert len(list(found[0].parent.parent.iterdir())) == 1


def test_a_failure_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(checkpoint: Path, target: Path, **options: Any) -> None:
        target.write_bytes(b"half")
        raise MtmError("no")

    monkeypatch.setattr("mtmamba.export.checkpoint_to_onnx.export_checkpoint", export)
    (folder / "best.pth").write_bytes(b"weights")
    with pytest.raises(MtmError, match="no"):
        onnx_of(folder / "best.pth", Recipe(), quiet)
    assert not list(entries())


def test_an_unusable_cache_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch, counted: list[str]) -> None:
    (folder / "best.pth").write_bytes(b"weights")
    with monkeypatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder / "best.pth" / "below"))
        with pytest.raises(MtmError, match=f"set {CACHE_VARIABLE} to one"):
            onnx_of(folder / "best.pth", Recipe(), quiet)


@pytest.mark.trt
class TestEngine:
    def test_it_is_built_once_for_this_gpu(
        self, scan_onnx: Path, plugins: PluginLibrary, rtx: TensorRT, one_gpu: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A real engine with our plugin in it: TensorRT for RTX needs no GPU to build one."""
        steps: list[str] = []
        path = engine_of(scan_onnx, Recipe(), lambda what, share: steps.append(what), rtx)
        assert path.name == "best.fp32.engine" and steps[0] == "reading best.onnx"
        assert "building best.fp32.engine" in steps
        side = sidecar.check(
            path, flavour=rtx.flavour, tensorrt_version=rtx.version, plugin_hash=plugins.hash, compute_capability="8.9"
        )
        assert side.rebuild_command(path).split()[1] == str(scan_onnx.resolve().relative_to(Path.cwd()))
        assert engine_of(scan_onnx, Recipe(), lambda what, share: pytest.fail("it was built again"), rtx) == path
        [entry] = entries()
        assert entry.facts["tensorrt"] == rtx.version and entry.facts["compute_capability"] == [8, 9]

        monkeypatch.setattr(model_cache, "load_plugins", lambda trt, on_step: plugins)  # none for a made-up key
        monkeypatch.setattr(
            model_cache, "build_engine", lambda trt, model, target, *rest: target.write_bytes(b"engine")
        )
        others = {path, engine_of(scan_onnx, Recipe(precision="fp16"), quiet, rtx)}
        others.add(engine_of(scan_onnx, Recipe(picture_io=True), quiet, rtx))
        others.add(engine_of(scan_onnx, Recipe(), quiet, replace(rtx, flavour="tensorrt")))
        monkeypatch.setattr(gpu, "find_gpus", lambda: [replace(GPU, compute_capability=(12, 0))])
        others.add(engine_of(scan_onnx, Recipe(), quiet, rtx))
        model = onnx.load(str(scan_onnx))
        model.doc_string = "other"
        onnx.save(model, str(scan_onnx))
        others.add(engine_of(scan_onnx, Recipe(), quiet, rtx))
        monkeypatch.setattr(toolchain.Toolchain, "key", lambda self: "other plugins")
        others.add(engine_of(scan_onnx, Recipe(), quiet, rtx))
        assert len(others) == 7


@pytest.mark.gpu
@pytest.mark.trt
def test_mtm_run_builds_what_it_needs(
    folder: Path, small_onnx: Path, monkeypatch: pytest.MonkeyPatch, plugins: PluginLibrary
) -> None:
    monkeypatch.undo()
    if not gpu.find_gpus():
        pytest.skip("no NVIDIA GPU here")
    cv2.imwrite(str(folder / "photo.png"), np.full((40, 50, 3), 90, np.uint8))
    arguments = [str(folder / "photo.png"), "--model", str(small_onnx), "--output", str(folder / "out.png"), "--json"]
    result = CliRunner().invoke(run_cli.main, arguments)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["backend"] == "tensorrt" and answer["made_from"] == str(small_onnx)
    with open_backend(Path(answer["model"])) as backend:
        assert backend.metadata.input_size == (32, 32)


class TestChoice:
    """Which kind of file becomes what, before anything is made."""

    def made_as(self, given: str, backend: str | None, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> str:
        trail: list[str] = []

        def step(kind: str) -> Callable[..., Path]:
            def make(path: Path, recipe: Recipe, on_step: object) -> Path:
                trail.append(f"{kind}{' picture' if recipe.picture_io else ''}")
                return Path(f"{path.stem}.{kind}")

            return make

        monkeypatch.setattr(model_choice, "onnx_of", step("onnx"))
        monkeypatch.setattr(model_choice, "engine_of", step("engine"))
        Path(given).write_bytes(b"model")
        choice = made(choose(Path(given), backend), recipe, quiet)
        assert choice.source == Path(given)
        return " ".join([*trail, "->", choice.backend, str(choice.model)])

    @pytest.mark.parametrize(
        ("given", "backend", "picture", "way"),
        [
            ("a.pth", None, False, "-> torch a.pth"),
            ("a.onnx", None, False, "-> onnxruntime a.onnx"),
            ("a.pth", "onnxruntime", True, "onnx picture -> onnxruntime a.onnx"),
        ],
    )
    def test_without_a_gpu(
        self, given: str, backend: str | None, picture: bool, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.made_as(given, backend, Recipe(picture_io=picture), monkeypatch) == way

    @pytest.mark.parametrize(
        ("given", "backend", "way"),
        [
            ("a.pth", None, "onnx engine picture -> tensorrt a.engine"),
            ("a.onnx", "tensorrt", "engine picture -> tensorrt a.engine"),
            ("a.pth", "onnxruntime", "onnx picture -> onnxruntime a.onnx"),
        ],
    )
    def test_with_a_gpu(
        self, given: str, backend: str | None, way: str, one_gpu: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model_choice, "_can_build", lambda: True)
        assert self.made_as(given, backend, Recipe(picture_io=True), monkeypatch) == way
        assert self.made_as("b.engine", None, Recipe(), monkeypatch) == "-> tensorrt b.engine"
        assert self.made_as("c.onnx", "onnxruntime", Recipe(), monkeypatch) == "-> onnxruntime c.onnx"

    def test_a_build_that_nobody_asked_for_fails(self, one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: object) -> Path:
            raise MtmError("TensorRT cannot build it")

        monkeypatch.setattr(model_choice, "_can_build", lambda: True)
        monkeypatch.setattr(model_choice, "engine_of", fail)
        Path("a.onnx").write_bytes(b"model")
        with pytest.raises(
            MtmError, match="cannot build it; to run a.onnx without an engine, use --backend onnxruntime"
        ):
            made(choose(Path("a.onnx"), None), Recipe(), quiet)
        with pytest.raises(MtmError, match="cannot build it$"):
            made(choose(Path("a.onnx"), "tensorrt"), Recipe(), quiet)

    def test_a_gpu_alone_is_not_enough(self, one_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
        def none() -> None:
            raise MtmError("no nvcc")

        monkeypatch.setattr(toolchain, "find_toolchain", none)
        assert self.made_as("a.onnx", None, Recipe(), monkeypatch) == "-> onnxruntime a.onnx"
        monkeypatch.undo()
        monkeypatch.setattr(gpu, "find_gpus", lambda: [GPU])
        monkeypatch.setattr(trt, "installed", tuple)
        assert model_choice._can_build() is False

    @pytest.mark.parametrize(
        ("given", "backend", "recipe", "sentence"),
        [
            ("a.onnx", "torch", Recipe(), "found .onnx; use --backend onnxruntime"),
            ("a.engine", "onnxruntime", Recipe(), "found .engine; use --backend tensorrt"),
            ("a.onnx", "tensorrt", Recipe(), "expected an NVIDIA GPU and its driver, found no NVIDIA GPU"),
            ("a.onnx", "onnxruntime", Recipe(rebuild=True), "runs this file as it is"),
            ("a.pth", None, Recipe(picture_io=True), "runs this file as it is"),
            (
                "a.pth",
                "onnxruntime",
                Recipe(precision="fp16"),
                "expected --backend tensorrt, which alone builds engines",
            ),
            ("a.gif", None, Recipe(), "expected a model file"),
        ],
    )
    def test_what_cannot_be(
        self, given: str, backend: str | None, recipe: Recipe, sentence: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(MtmError) as caught:
            self.made_as(given, backend, recipe, monkeypatch)
        assert sentence in str(caught.value)


def test_mtm_cache(folder: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_cli, "FOLDER", model_cache.FOLDER)
    (folder / "best.pth").write_bytes(b"weights")
    path = onnx_of(folder / "best.pth", Recipe(), quiet)
    shown = CliRunner().invoke(cache_cli.main, [])
    assert shown.exit_code == 0 and "best.onnx" in shown.stdout and path.is_file()
    answer = json.loads(CliRunner().invoke(cache_cli.main, ["--clear", "--json"]).stdout)
    assert answer["deleted"] and [Path(row["folder"]) for row in answer["models"]] == [path.parent]
    assert not path.exists() and not list(entries())


def test_what_a_killed_process_left_is_cleared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = cache_dir(model_cache.FOLDER)
    (models / ".key.left").mkdir()
    (models / ".key.left" / "best.onnx").write_bytes(b"half")
    said: list[str] = []

    def export(checkpoint: Path, target: Path, **options: Any) -> None:
        said.append(CliRunner().invoke(cache_cli.main, ["--clear"]).stdout)
        target.write_bytes(b"model")  # its folder is still there

    monkeypatch.setattr(cache_cli, "FOLDER", model_cache.FOLDER)
    monkeypatch.setattr("mtmamba.export.checkpoint_to_onnx.export_checkpoint", export)
    (folder / "best.pth").write_bytes(b"weights")
    assert onnx_of(folder / "best.pth", Recipe(), quiet).is_file()
    assert "deleted 0 models" in said[0] and "deleted 1 that were never finished" in said[0]
    assert [path for path in models.iterdir() if path.name.startswith(".")] == []
