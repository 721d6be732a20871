"""Two hundred damaged engines, sidecars, ONNX files and checkpoints through the roads the commands take: each is refused
in one sentence, or happens to be valid and gives finite numbers. No crash, no hang, no code run."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from mtmamba.files import sha256
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime.sidecar import Sidecar, sidecar_path

WORKER = Path(__file__).with_name("mutation_worker.py")
COUNT = 50  # of each of the four kinds of file
TIMEOUT_S = 120


def flip(data: bytearray, rng: np.random.Generator) -> None:
    """One to sixteen bytes take another value; half the time near the start, where headers are."""
    reach = len(data) if rng.integers(2) else min(len(data), 512)
    for position in rng.integers(reach, size=int(rng.integers(1, 17))):
        data[position] ^= int(rng.integers(1, 256))


def cut(data: bytearray, rng: np.random.Generator) -> None:
    """The end is missing."""
    del data[int(rng.integers(1, len(data))) :]


def swap(data: bytearray, rng: np.random.Generator) -> None:
    """Two blocks change places."""
    size = int(rng.integers(1, max(2, len(data) // 8)))
    one, other = (int(start) for start in sorted(rng.integers(len(data) - size, size=2)))
    data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def grow(data: bytearray, rng: np.random.Generator) -> None:
    """Bytes that do not belong there: in the middle or behind the end."""
    start = int(rng.integers(len(data))) if rng.integers(2) else len(data)
    data[start:start] = rng.bytes(int(rng.integers(1, 4096)))


def lose(data: bytearray, rng: np.random.Generator) -> None:
    """A block is zero, as after a copy that broke off."""
    start = int(rng.integers(len(data)))
    size = min(len(data) - start, int(rng.integers(1, 4096)))
    data[start : start + size] = bytes(size)


MUTATIONS = (flip, flip, cut, swap, grow, lose)


def mutate(intact: Path, folder: Path, seed: int, count: int) -> list[Path]:
    """`count` damaged copies, each with a byte changed at least."""
    data = intact.read_bytes()
    paths = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        damaged = bytearray(data)
        while bytes(damaged) == data:
            MUTATIONS[index % len(MUTATIONS)](damaged, rng)
        kind = MUTATIONS[index % len(MUTATIONS)].__name__
        paths.append(folder / f"{kind}_{index:03d}{''.join(intact.suffixes)}")
        paths[-1].write_bytes(damaged)
    return paths


def results(kind: str, intact: Path, damaged: list[Path]) -> dict[str, list[str]]:
    """What the worker made of every file. A crash, a hang or another exception than MtmError fails the test."""
    command = [sys.executable, str(WORKER), kind, str(intact), *map(str, damaged)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    last = next((line["file"] for line in reversed(lines) if "file" in line), "nothing yet")
    assert run.returncode == 0, f"the worker died with {run.returncode} at {last}: {run.stderr[-2000:]}"
    found = {one["file"]: other["outcomes"] for one, other in zip(lines[::2], lines[1::2], strict=True)}
    assert list(found) == [path.name for path in damaged]
    for name, outcomes in found.items():
        for outcome in outcomes:
            assert outcome == "loaded" or outcome.startswith("refused: "), f"{name}: {outcome}"
            assert "\n" not in outcome and len(outcome) < 1000, f"{name}: no single sentence: {outcome}"
            assert outcome == "loaded" or str(intact.parent) in outcome, f"{name}: which file? {outcome}"
    return found


def refused(found: dict[str, list[str]]) -> int:
    return sum(outcomes[0] != "loaded" for outcomes in found.values())


def test_onnx_files(tmp_path: Path, make_toy: Callable[..., Path]) -> None:
    intact = make_toy(tmp_path / "intact.onnx")
    found = results("onnx", intact, mutate(intact, tmp_path, seed=1, count=COUNT))
    assert refused(found) > COUNT // 3  # the others hit weights: damaged numbers are still numbers


def test_checkpoints(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (mtmamba[model])")
    from mtmamba import MTMamba, preset, save_checkpoint

    torch.manual_seed(0)
    tiny = preset("synthetic", "nano", tasks=("depth",))
    config = replace(tiny, embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), input_size=(32, 32), d_state=4)
    save_checkpoint(tmp_path / "intact.pth", MTMamba(config))
    found = results("checkpoint", tmp_path / "intact.pth", mutate(tmp_path / "intact.pth", tmp_path, 2, COUNT))
    assert refused(found) > 4 * COUNT // 5  # the others only gained bytes behind the end


@pytest.fixture
def engine(tmp_path: Path, metadata: ModelMetadata) -> Path:
    """An "engine" (TensorRT would read it: any bytes do) and its sidecar."""
    path = tmp_path / "intact.engine"
    path.write_bytes(np.random.default_rng(0).bytes(20_000))
    (tmp_path / "intact").write_bytes(path.read_bytes())
    side = Sidecar(
        flavour="tensorrt", tensorrt_version="1.2.3", compute_capabilities=("8.9",), plugin_hash="", plugin_ops=(),
        onnx_path="best.onnx", onnx_sha256="0" * 64, engine_sha256=sha256(path), engine_bytes=path.stat().st_size,
        precision="fp16", metadata=metadata, options=("--flavour", "tensorrt"),
    )  # fmt: skip
    sidecar_path(path).write_text(side.to_json(), encoding="utf-8")
    return path


def test_engines(tmp_path: Path, engine: Path) -> None:
    """TensorRT itself may crash on damaged bytes, so it must never see any: the sidecar's hash is held against them."""
    damaged = mutate(engine, tmp_path, seed=3, count=COUNT)
    for path in damaged:
        sidecar_path(path).write_bytes(sidecar_path(engine).read_bytes())
    found = results("engine", engine, damaged)
    assert refused(found) == COUNT
    assert all("its bytes are not those its sidecar was written for" in one for (one,) in found.values())


def test_sidecars(tmp_path: Path, engine: Path) -> None:
    engines = []
    for path in mutate(sidecar_path(engine), tmp_path, seed=4, count=COUNT):
        engines.append(path.with_suffix(""))
        engines[-1].write_bytes(engine.read_bytes())
    assert refused(results("engine", engine, engines)) > COUNT // 2


def test_onnx_files_with_our_metadata_damaged(tmp_path: Path, make_toy: Callable[..., Path]) -> None:
    """Damage to the few hundred bytes that decide sizes and tasks, in files that are sound otherwise."""
    intact = make_toy(tmp_path / "intact.onnx")
    damaged = []
    for index in range(24):
        rng = np.random.default_rng([5, index])
        model = onnx.load(str(intact))
        text = bytearray(model.metadata_props[0].value.encode())
        (flip, cut, swap, lose)[index % 4](text, rng)
        model.metadata_props[0].value = text.decode("latin-1")
        damaged.append(tmp_path / f"metadata_{index:02d}.onnx")
        onnx.save(model, str(damaged[-1]))
    assert refused(results("onnx", intact, damaged)) > 12
