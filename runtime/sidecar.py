"""NAME.engine.json beside an engine: what it was built from, with what, for what. Read and checked before the engine is
loaded, since TensorRT itself refuses an engine of another version without saying what to do."""

import json
import os
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mtmamba.errors import MtmError
from mtmamba.files import existing_file, sha256
from mtmamba.metadata import ModelMetadata

FORMAT = 2
SUFFIX = ".json"


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """flavour, tensorrt_version: of the builder. compute_capabilities: the GPUs it was built for, such as ("8.9",).
    plugin_hash: of the plugin sources, "" where the engine holds no plugin. plugin_ops: our operators in the engine.
    onnx_path: relative to the engine's folder. engine_sha256: of the engine file this sidecar belongs to. precision:
    one of `mtmamba.calib.plan.PRECISIONS`. precision_plan: what the rewriting did, and why some nodes stay higher.
    options: further arguments of mtm-build-engine that made this engine. embedded_plugin: the plugin library is in
    it. version_compatible: later TensorRT versions load it."""

    flavour: str
    tensorrt_version: str
    compute_capabilities: tuple[str, ...]
    plugin_hash: str
    plugin_ops: tuple[str, ...]
    onnx_path: str
    onnx_sha256: str
    engine_sha256: str
    engine_bytes: int
    precision: str
    metadata: ModelMetadata
    precision_plan: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    embedded_plugin: bool = False
    version_compatible: bool = False

    @property
    def carries_code(self) -> bool:
        """Whether loading the engine runs machine code that is in it."""
        return self.embedded_plugin or self.version_compatible

    def to_json(self) -> str:
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return json.dumps({"format": FORMAT, **values, "metadata": self.metadata.to_dict()}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "Sidecar":
        """Read `to_json`'s text; `source` names the file in errors. Raises MtmError for any other text."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise MtmError(f"{source}: expected an engine's sidecar, found no JSON ({error}); {_REBUILD}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise MtmError(f"{source}: expected an engine's sidecar of format {FORMAT}, found {found!r}; {_REBUILD}")
        known = {item.name for item in fields(cls)}
        given: dict[str, Any] = {key: _tupled(value) for key, value in values.items() if key in known}
        metadata = ModelMetadata.from_dict(given.pop("metadata", None), source)
        try:
            sidecar = cls(metadata=metadata, **given)
        except TypeError as error:
            raise MtmError(f"{source}: incomplete engine sidecar ({error}); {_REBUILD}") from error
        wrong = [name for name, kind in _KINDS.items() if not _is(getattr(sidecar, name), kind)]
        if wrong:
            raise MtmError(f"{source}: damaged engine sidecar, wrong type of {', '.join(wrong)}; {_REBUILD}")
        return sidecar

    def rebuild_command(self, engine: Path) -> str:
        """The command that builds `engine` again with the TensorRT that is installed now."""
        onnx = Path(os.path.normpath(engine.absolute().parent / self.onnx_path))
        with_options = [
            "mtm-build-engine",
            short_path(onnx),
            f"--{self.precision}",
            "--output",
            short_path(engine),
            *self.options,
        ]
        return shlex.join(with_options)


_KINDS: dict[str, type] = {
    **dict.fromkeys(("flavour", "tensorrt_version", "plugin_hash", "onnx_path", "onnx_sha256", "engine_sha256"), str),
    **dict.fromkeys(("compute_capabilities", "plugin_ops", "options"), tuple),
    "precision": str,
    "engine_bytes": int,
    "precision_plan": dict,
    **dict.fromkeys(("embedded_plugin", "version_compatible"), bool),
}


def _is(value: Any, kind: type) -> bool:
    """Whether it is of this type; tuples hold texts."""
    if isinstance(value, tuple):
        return kind is tuple and all(isinstance(item, str) for item in value)
    return isinstance(value, kind)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_REBUILD = "build the engine again with mtm-build-engine"


def sidecar_path(engine: Path) -> Path:
    """NAME.engine -> NAME.engine.json."""
    return engine.with_name(engine.name + SUFFIX)


def read(engine: Path) -> Sidecar:
    """The sidecar of `engine`. Raises MtmError where either is missing or it is no sidecar of this format."""
    engine = existing_file(engine, "TensorRT engine")
    path = sidecar_path(engine)
    if not path.is_file():
        raise MtmError(
            f"{engine}: expected its sidecar {path.name} beside it, found none; copy both files, or {_REBUILD}"
        )
    return Sidecar.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))


def check(
    engine: Path,
    *,
    flavour: str,
    tensorrt_version: str,
    plugin_hash: str | None = None,
    compute_capability: str | None = None,
) -> Sidecar:
    """Read the sidecar of `engine` and hold it against what is about to load it; the sidecar if all agrees.

    plugin_hash: of the loaded plugin library. compute_capability: of the GPU, such as "8.9". None: not checked.
    Raises MtmError that says what differs and the command that rebuilds.
    """
    sidecar = read(engine)
    problems = _differences(sidecar, flavour, tensorrt_version, plugin_hash, compute_capability)
    if not problems and sha256(engine) != sidecar.engine_sha256:
        problems = ["its bytes are not those its sidecar was written for"]
    if problems:
        raise MtmError(
            f"{engine} cannot be used here: {'; '.join(problems)}. Rebuild it: {sidecar.rebuild_command(engine)}"
        )
    return sidecar


def _differences(
    sidecar: Sidecar, flavour: str, version: str, plugin_hash: str | None, capability: str | None
) -> list[str]:
    if sidecar.flavour != flavour:
        return [f"it was built by {sidecar.flavour} {sidecar.tensorrt_version}, and this is {flavour} {version}"]
    problems = []
    if not _loads(sidecar, version):
        problems.append(f"it was built by {flavour} {sidecar.tensorrt_version}, and {version} is installed")
    if plugin_hash is not None and sidecar.plugin_hash and sidecar.plugin_hash != plugin_hash:
        problems.append(f"it was built with plugins {sidecar.plugin_hash[:12]}, and these are {plugin_hash[:12]}")
    if capability is not None and capability not in sidecar.compute_capabilities:
        built_for = ", ".join(sidecar.compute_capabilities)
        problems.append(f"it was built for GPUs of compute capability {built_for}, and this one has {capability}")
    return problems


def _loads(sidecar: Sidecar, version: str) -> bool:
    """Whether TensorRT of this version loads the engine: its own, or a later one of the same major."""
    if sidecar.tensorrt_version == version:
        return True
    built, here = (_numbers(text) for text in (sidecar.tensorrt_version, version))
    return sidecar.version_compatible and built[:1] == here[:1] and built <= here


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def short_path(path: Path) -> str:
    """Relative to the working folder where it lies inside it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
