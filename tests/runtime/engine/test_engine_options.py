"""What engines can be asked for. With TensorRT for RTX (marker trt): real builds without a GPU. What only the full
TensorRT has is held against its documented interface, played here."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result

from mtmamba.errors import MtmError
from mtmamba.export.picture_io import with_picture_io
from mtmamba.runtime import cuda, engine_options, gpu
from mtmamba.runtime.build_cli import main
from mtmamba.runtime.engine import BuildOptions, build_engine, compute_capabilities_for
from mtmamba.runtime.engine_options import EngineOptions, check_options, configure, timing_cache, use_device
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.runtime.plugin import PluginLibrary
from mtmamba.runtime.sidecar import check, read
from mtmamba.runtime.trt import Messages, TensorRT

TARGET = ("--target", "sm_89")
GPU = gpu.Gpu(index=0, name="NVIDIA RTX / 4090", compute_capability=(8, 9), memory_mib=1024)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def build(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, *TARGET, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.mark.trt
class TestBuilt:
    @pytest.fixture(autouse=True)
    def ready(self, plugins: PluginLibrary, no_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_picture_io(self, small_onnx: Path, rtx: TensorRT, precision: str) -> None:
        """A whole model: TensorRT takes the uint8 input and every one of the outputs' types."""
        answer = build(small_onnx, "--picture-io", f"--{precision}")
        assert (answer["engine"], answer["io"]) == (f"small.{precision}.picture.engine", "picture")
        side = read(Path(answer["engine"]))
        assert side.metadata.io == "picture" and side.metadata.input_shape == (1, 32, 32, 3)
        assert "--picture-io" in side.rebuild_command(Path(answer["engine"]))

    def test_every_kind_of_task(self, make_toy: Callable[..., Path], rtx: TensorRT, tmp_path: Path) -> None:
        make_toy(tmp_path / "toy.onnx")
        options = BuildOptions(targets=("sm_89",), engine=EngineOptions(picture_io=True))
        built = build_engine(rtx, load_onnx(tmp_path / "toy.onnx"), tmp_path / "toy.engine", options, None)
        assert len(built.sidecar.metadata.tasks) == 6

    def test_an_export_that_has_pictures_at_its_ends(self, make_toy: Callable[..., Path], tmp_path: Path) -> None:
        onnx.save(with_picture_io(onnx.load(str(make_toy(tmp_path / "toy.onnx")))), "p.onnx")
        assert build("p.onnx")["io"] == build("p.onnx", "--picture-io")["io"] == "picture"
        result = run("p.onnx", "--fp16", *TARGET)
        assert result.exit_code == 1
        assert "expected an export with raw ends to build in fp16" in result.stderr
        assert "mtm-build-engine --fp16 --picture-io" in result.stderr

    def test_embed_plugin(self, scan_onnx: Path, plugins: PluginLibrary, rtx: TensorRT) -> None:
        plain, embedded = build(scan_onnx), build(scan_onnx, "--embed-plugin", "-o", "embedded.engine")
        library = plugins.path.stat().st_size
        assert embedded["bytes"] > plain["bytes"] + 0.9 * library, "the library is not in the engine"
        assert embedded["embedded_plugin"] and not plain["embedded_plugin"]
        check(Path("embedded.engine"), flavour=rtx.flavour, tensorrt_version=rtx.version)
        assert "set MTMAMBA_TRUST_ENGINES=1 there" in run(scan_onnx, "--embed-plugin", *TARGET).stdout

    def test_no_lean_runtime(self, scan_onnx: Path) -> None:
        result = run(scan_onnx, "--version-compatible", *TARGET)
        assert result.exit_code == 1
        assert "--version-compatible: expected the full TensorRT" in result.stderr
        assert "found tensorrt-rtx" in result.stderr

    def test_a_device_and_a_target(self, scan_onnx: Path) -> None:
        result = run(scan_onnx, "--device", "1", *TARGET)
        assert result.exit_code == 1 and "leave one of them away" in result.stderr


class FakeTimings:
    """IBuilderConfig's timing cache, as TensorRT documents it: create, attach (refused where it is another device's)."""

    def __init__(self, refuses: bytes | None = None) -> None:
        self.refuses = refuses
        self.attached: bytes | None = None

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(data=data, serialize=lambda: bytearray(data + b"+1"))

    def set_timing_cache(self, made: Any, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if made.data == self.refuses:
            return False
        self.attached = made.data
        return True


def full_tensorrt(**changes: Any) -> TensorRT:
    flags = SimpleNamespace(VERSION_COMPATIBLE="version compatible")
    config = type("IBuilderConfig", (), {"plugins_to_serialize": None})
    values = {"__version__": "10.14.1", "BuilderFlag": flags, "IBuilderConfig": config, **changes}
    return TensorRT(flavour="tensorrt", module=SimpleNamespace(**values), logger=None, messages=Messages())


class TestTimings:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine_options, "cache_dir", lambda *parts: tmp_path)
        monkeypatch.setattr(gpu, "find_gpus", lambda: [GPU])

    def test_they_are_used_again(self) -> None:
        for expected in (b"", b"+1", b"+1+1"):
            config = FakeTimings()
            with timing_cache(full_tensorrt(), config, EngineOptions()):
                assert config.attached == expected

    def test_a_file_of_another_driver_is_made_again(self, tmp_path: Path) -> None:
        path = engine_options.timing_cache_path(full_tensorrt(), GPU)
        assert path.name == "tensorrt-10.14.1-NVIDIA-RTX-4090.bin"
        path.write_bytes(b"old")
        config = FakeTimings(refuses=b"old")
        with timing_cache(full_tensorrt(), config, EngineOptions()):
            assert config.attached == b""
        assert path.read_bytes() == b"+1"

    def test_a_failing_build_keeps_none(self, tmp_path: Path) -> None:
        with pytest.raises(MtmError, match="no"), timing_cache(full_tensorrt(), FakeTimings(), EngineOptions()):
            raise MtmError("no")
        assert not list(tmp_path.iterdir())

    def test_rtx_has_none(self, tmp_path: Path) -> None:
        rtx = TensorRT(flavour="tensorrt-rtx", module=None, logger=None, messages=Messages())
        with timing_cache(rtx, None, EngineOptions()):
            pass
        assert not list(tmp_path.iterdir())


def test_the_full_tensorrts_switches() -> None:
    library = PluginLibrary(path=Path("/lib/plugins.so"), hash="h", ops=frozenset({"SelectiveScan"}))
    flags: list[str] = []
    config = SimpleNamespace(set_flag=flags.append, plugins_to_serialize=[])
    options = EngineOptions(embed_plugin=True, version_compatible=True)
    check_options(full_tensorrt(), options, ())
    configure(full_tensorrt(), config, options, library)
    assert flags == ["version compatible"] and config.plugins_to_serialize == ["/lib/plugins.so"]
    configure(full_tensorrt(), config := SimpleNamespace(), EngineOptions(), library)
    assert vars(config) == {}
    with pytest.raises(MtmError, match="--embed-plugin: expected a TensorRT that serialises plugin libraries"):
        check_options(full_tensorrt(IBuilderConfig=object), options, ())


def test_the_gpu_that_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    status = SimpleNamespace(cudaSuccess=0)

    def cudaSetDevice(index: int) -> tuple[int]:  # noqa: N802
        chosen.append(index)
        return (0 if index < 2 else 101,)

    cudart = SimpleNamespace(
        cudaSetDevice=cudaSetDevice, cudaError_t=status, cudaGetErrorString=lambda code: (0, b"invalid device ordinal")
    )
    monkeypatch.setattr(cuda, "import_cudart", lambda: cudart)
    use_device(EngineOptions(), ())
    use_device(EngineOptions(device=1), ("sm_89",))
    assert chosen == []
    use_device(EngineOptions(device=1), ())
    assert chosen == [1]
    with pytest.raises(MtmError, match=r"--device 5: CUDA's cudaSetDevice failed on GPU 5 \(invalid device ordinal\)"):
        use_device(EngineOptions(device=5), ())
    monkeypatch.setattr(gpu, "compute_capabilities", lambda: ("8.9", "12.0"))
    assert compute_capabilities_for(full_tensorrt(), (), 1) == ("12.0",)
    with pytest.raises(MtmError, match="--device 2: expected an index below 2"):
        compute_capabilities_for(full_tensorrt(), (), 2)
