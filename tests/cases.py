"""The cases every implementation of the operators is held to: a base case, and one change a case.

The truth is the float64 loop (`mtmamba.ops.reference`) of the inputs as the implementation sees them, rounded to its type;
how far it may stray is in plugins/ops.yaml. Sizes go by the letters of plugins/ops.yaml.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import yaml
from numpy.typing import NDArray

from mtmamba.ops.reference import selective_scan_2d_reference, selective_scan_reference

Array = NDArray[np.float64]
Arrays = dict[str, Array]

CONTRACT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "plugins" / "ops.yaml").read_text())
OPS: dict[str, Any] = CONTRACT["ops"]
TYPES: tuple[str, ...] = tuple(CONTRACT["types"])
DTYPES = {name: np.dtype(getattr(ml_dtypes if name == "bfloat16" else np, name)) for name in (*TYPES, "float64")}
SCAN, MAP = "SelectiveScan", "SelectiveScan2D"
BASE = {
    SCAN: {"B": 2, "D": 12, "G": 2, "N": 16, "L": 37},
    MAP: {"B": 1, "G": 2, "D": 20, "H": 5, "W": 7, "K": 4, "R": 3, "N": 16},
}
LONG = {SCAN: {"L": 300}, MAP: {"H": 18, "W": 16}}  # room for an error to grow
TILES = (8, 16, 32, 64, 128, 256)  # tokens: of the vectorised path, the ONNX body, the C++ and CUDA kernels


@dataclass(frozen=True, kw_only=True)
class Case:
    """sizes: changes to the base. fill: inputs that hold one hostile value throughout. softplus: SelectiveScan's
    attribute; without it the steps are positive as they come."""

    op: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    fill: Mapping[str, float] = field(default_factory=dict)
    softplus: bool = True

    def __str__(self) -> str:
        changes = [f"{name}={value:g}" for name, value in (*self.fill.items(), *self.sizes.items())]
        return " ".join(changes + ([] if self.softplus else ["softplus=0"])) or "base"

    def __hash__(self) -> int:
        return hash((self.op, str(self)))

    @property
    def attributes(self) -> dict[str, int]:
        """Of the ONNX node and the plugin."""
        return {"delta_softplus": int(self.softplus)} if self.op == SCAN else {}

    def arrays(self, kind: str = "float64") -> Arrays:
        """The inputs, in the operator's order, each rounded to the type it has in `kind`, in float64."""
        arrays = inputs(self.op, **self.sizes)
        for name in () if self.softplus else ("delta", "delta_bias"):
            arrays[name] = np.abs(arrays[name])
        for name, value in self.fill.items():
            arrays[name] = np.full_like(arrays[name], value)
        return {name: rounded(value, type_of(self.op, name, kind)) for name, value in arrays.items()}

    def tolerance(self, kind: str) -> float:
        """As a fraction of max(1, |y|max)."""
        return float(OPS[self.op]["tolerances"][kind]["hostile" if self.fill else "normal"])

    def error(self, y: NDArray[Any], kind: str) -> float:
        """How far y is from the truth, as a fraction of max(1, |y|max). What the type cannot hold has to be infinite,
        and everything else finite."""
        expected, found = truth(self, kind), np.asarray(y, np.float64)
        assert found.shape == expected.shape, f"expected y {expected.shape}, found {found.shape}"
        largest = float(ml_dtypes.finfo(DTYPES[kind]).max)
        held = np.abs(expected) < largest * (1 - self.tolerance(kind))
        assert np.isfinite(found[held]).all(), "not finite"
        beyond = np.abs(expected) > largest * (1 + self.tolerance(kind))
        assert (found[beyond] == np.copysign(np.inf, expected[beyond])).all(), "expected infinity"
        return float(np.abs(found - expected)[held].max(initial=0) / max(1.0, np.abs(expected[held]).max(initial=0)))

    def check(self, y: NDArray[Any], kind: str) -> None:
        """Raises AssertionError where y is further from the truth than plugins/ops.yaml allows."""
        error, allowed = self.error(y, kind), self.tolerance(kind)
        assert error <= allowed, (
            f"{self.op} {self} {kind}: expected an error of {allowed:.1e} at most, found {error:.1e}"
        )


def type_of(op: str, name: str, kind: str) -> str:
    """The type of input `name` where the operator's others are `kind`."""
    fixed = {entry["name"] for entry in OPS[op]["inputs"] if entry.get("float32")}
    return "float32" if name in fixed and kind != "float64" else kind


def rounded(values: Array, kind: str) -> Array:
    return values.astype(DTYPES[kind]).astype(np.float64)


def inputs(op: str, seed: int = 0, **sizes: int) -> Arrays:
    """Normally distributed inputs, A = -exp(normal), of the base case with `sizes` changed."""
    s = BASE[op] | sizes
    rng = np.random.default_rng(seed)
    total = s | {"R+2N": s["R"] + 2 * s["N"]} if op == MAP else s
    shapes = {entry["name"]: tuple(total[dim] for dim in entry["dims"]) for entry in OPS[op]["inputs"]}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return arrays | {"A": -np.exp(arrays["A"])}


@cache
def truth(case: Case, kind: str) -> Array:
    """y of the float64 loop, for the inputs as `kind` holds them."""
    with np.errstate(over="ignore", under="ignore"):
        if case.op == MAP:
            return selective_scan_2d_reference(**case.arrays(kind))
        return selective_scan_reference(**case.arrays(kind), delta_softplus=case.softplus)


def _scan_cases() -> Iterator[Case]:
    lengths = {1, 2, 1008, *(tile + by for tile in TILES for by in (-1, 0, 1))}
    sizes: list[dict[str, int]] = [{}, *({"L": length} for length in sorted(lengths))]
    sizes += [{"B": 1}, {"B": 3}, {"G": 1}, {"G": 20, "D": 20}, {"G": 1, "D": 1}, {"D": 34}]
    sizes += [{"D": 128, "G": 4, "L": 300}, *({"N": states} for states in (1, 3, 4, 15, 17, 64))]
    yield from (Case(op=SCAN, sizes=change) for change in sizes)
    yield Case(op=SCAN, softplus=False)
    for name, value in (("delta", -50), ("delta", 50), *_HOSTILE_A, ("u", 1e4), ("B", 1e4), ("C", 1e4)):
        yield Case(op=SCAN, sizes=LONG[SCAN], fill={name: value})


def _map_cases() -> Iterator[Case]:
    sizes: list[dict[str, int]] = [{}, {"B": 3}, {"G": 1}, {"G": 20}, {"R": 1}, {"R": 48}]
    sizes += [{"H": H, "W": W} for H, W in ((1, 1), (1, 17), (16, 1), (6, 1), (8, 16), (17, 33), (28, 36))]
    sizes += [*({"D": D} for D in (1, 4, 15, 16, 17, 33)), *({"N": N} for N in (1, 3, 15, 17, 64))]
    yield from (Case(op=MAP, sizes=change) for change in sizes)
    for name, value in (("dt_bias", -50), ("dt_bias", 50), *_HOSTILE_A, ("x", 1e4), ("x_dbl", 100)):
        yield Case(op=MAP, sizes=LONG[MAP], fill={name: value})


_HOSTILE_A = (("A", -1e-4), ("A", -1e3))
SCAN_CASES, MAP_CASES = tuple(_scan_cases()), tuple(_map_cases())
CASES = SCAN_CASES + MAP_CASES


def check_isolation(op: str, run: Callable[[Arrays], NDArray[Any]]) -> None:
    """A NaN or Inf in one channel's data and parameters comes out there, and every other channel keeps its bits.

    run: y of the operator for these inputs. Raises AssertionError otherwise.
    """
    clean = inputs(op)
    expected = np.asarray(run(clean), np.float64)
    for bad in (np.nan, np.inf):
        dirty = {name: value.copy() for name, value in clean.items()}
        changed = np.zeros(expected.shape, bool)
        if op == SCAN:
            dirty["u"][0, 7, 10] = bad
            changed[0, 7, 10:] = True
            gone: tuple[Any, ...] = (0, 7, 10)
        else:
            dirty["x"][0, 1, 7, 2, 3] = dirty["A"][1, 2, 7, 0] = bad
            changed[:, 1, :, :, 7] = True
            gone = (slice(None), 1, ..., 7)
        found = np.asarray(run(dirty), np.float64)
        assert not np.isfinite(found[gone]).any(), f"{bad} was lost"
        assert np.array_equal(found[~changed], expected[~changed]), f"{bad} spread to other channels or earlier tokens"


def strided(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The same values with other strides: every second element of a larger array, and with the last two axes swapped."""
    yield np.repeat(array, 2, axis=-1)[..., ::2]
    if array.ndim > 1:
        yield np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)
