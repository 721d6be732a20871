"""calibration.json: the ranges of a model's tensors over representative images, and which nodes stay in a higher precision.

A text file for people and for mtm-build-engine. It belongs to one ONNX file, by that file's SHA-256.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from mtmamba.calib.histogram import METHODS
from mtmamba.calib.plan import FP16_MAX, FP16_SMALLEST_NORMAL, PRECISIONS, QUANTISED, PrecisionPlan
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path, existing_file, sha256

FORMAT = 1
DEFAULT_NAME = "calibration.json"
HEADROOM = 4.0
"""Images that were not seen may reach this many times the largest value that was."""
_AGAIN = "make it again with mtm-calibrate"


@dataclass(frozen=True, kw_only=True)
class Range:
    """Of one tensor over all images. low, high: its smallest and largest value. clip: the magnitude beyond which INT8
    clips, by the calibration's method; None for a tensor that no quantised layer reads."""

    low: float
    high: float
    clip: float | None = None

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """onnx: the model's file name; onnx_sha256: of its bytes. method: one of `METHODS` or "" where no range was
    measured; percentile: of that method. images: how many were seen, of `sources`. versions: of the tools. ranges: tensor
    -> its range. kept: precision -> node -> why it stays FP32 (fp16, bf16) or 16 bits (int8, fp8) in such an engine."""

    onnx: str
    onnx_sha256: str
    method: str = ""
    percentile: float | None = None
    images: int = 0
    sources: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    kept: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def plan(self, precision: str) -> PrecisionPlan:
        """The built-in plan and this file's nodes, for an engine of `precision`."""
        if precision in QUANTISED:
            fp32, not_quantised = self.kept.get("fp16", {}), self.kept.get(precision, {})
            return PrecisionPlan(fp32_nodes=fp32, not_quantised=not_quantised)
        return PrecisionPlan(fp32_nodes=self.kept.get(precision, {}))

    def to_json(self) -> str:
        values = {**self.__dict__, "sources": list(self.sources), "versions": dict(self.versions)}
        values["ranges"] = {
            name: {key: value for key, value in item.__dict__.items() if value is not None}
            for name, item in self.ranges.items()
        }
        return (
            json.dumps({"format": FORMAT, **values, "kept": {k: dict(v) for k, v in self.kept.items()}}, indent=1)
            + "\n"
        )

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def from_json(cls, text: str, source: str) -> "Calibration":
        """Read `to_json`'s text; `source` names the file in errors. Raises MtmError for any other text."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise MtmError(f"{source}: expected a calibration, found no JSON ({error}); {_AGAIN}") from error
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise MtmError(f"{source}: expected a calibration of format {FORMAT}, found {found!r}; {_AGAIN}")
        try:
            ranges = {str(name): _range(item) for name, item in values["ranges"].items()}
            kept = {
                precision: {str(node): str(reason) for node, reason in nodes.items()}
                for precision, nodes in values["kept"].items()
            }
            calibration = cls(
                onnx=str(values["onnx"]),
                onnx_sha256=str(values["onnx_sha256"]),
                method=str(values["method"]),
                percentile=None if values["percentile"] is None else float(values["percentile"]),
                images=int(values["images"]),
                sources=tuple(map(str, values["sources"])),
                versions={str(name): str(version) for name, version in values["versions"].items()},
                ranges=ranges,
                kept=kept,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MtmError(
                f"{source}: damaged calibration ({type(error).__name__}: {error}); restore it or {_AGAIN}"
            ) from error
        unknown = sorted(set(kept) - set(PRECISIONS))
        if unknown or calibration.method not in ("", *METHODS):
            what = f"precision {unknown[0]!r}" if unknown else f"method {calibration.method!r}"
            raise MtmError(f"{source}: damaged calibration, unknown {what}; restore it or {_AGAIN}")
        return calibration


def _range(item: Mapping[str, Any]) -> Range:
    clip = item.get("clip")
    made = Range(low=float(item["low"]), high=float(item["high"]), clip=None if clip is None else float(clip))
    if not (math.isfinite(made.low) and math.isfinite(made.high) and made.low <= made.high):
        raise ValueError(f"a range from {made.low} to {made.high}")
    if made.clip is not None and not (math.isfinite(made.clip) and made.clip >= 0):
        raise ValueError(f"a clip of {made.clip}")
    return made


def read_calibration(path: Path, onnx: Path) -> Calibration:
    """The calibration in `path`, which must be of the model in file `onnx`. Raises MtmError where it is of another."""
    path = existing_file(path, "calibration")
    calibration = Calibration.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))
    found = sha256(existing_file(onnx, "ONNX model"))
    if calibration.onnx_sha256 != found:
        raise MtmError(
            f"{path}: expected a calibration of {onnx} (SHA-256 {found[:12]}), found one of {calibration.onnx} "
            f"({calibration.onnx_sha256[:12]}); run mtm-calibrate IMAGES --onnx {onnx}"
        )
    return calibration


def nodes_beyond_fp16(model: ModelProto, ranges: Mapping[str, Range]) -> dict[str, str]:
    """Node name -> why it stays FP32: it reads or writes a tensor that could leave what FP16 can hold."""
    problems = {}
    for tensor, item in ranges.items():
        if item.largest * HEADROOM > FP16_MAX:
            problems[tensor] = (
                f"{tensor} reached {item.largest:.4g}; FP16 ends at {FP16_MAX:.0f}, headroom {HEADROOM:g}"
            )
        elif 0 < item.largest < FP16_SMALLEST_NORMAL:
            problems[tensor] = f"{tensor} stays below {item.largest:.2g}, where FP16 loses its bits"
    nodes = {}
    for node in model.graph.node:
        found = [problems[name] for name in (*node.output, *node.input) if name in problems]
        if found:
            nodes[node.name] = found[0]
    return nodes
