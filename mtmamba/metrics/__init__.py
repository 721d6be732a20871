"""Metrics, streaming: meters add up counts and sums over a whole set, and divide once at the end. Without torch, so that
one code scores PyTorch and engines. docs/metrics.md has the definitions."""

from mtmamba.metrics.base import Meter, predict
from mtmamba.metrics.board import BOUNDARY_TOLERANCE, Definitions, Figures, Scoreboard, meter_for, or_null, plain
from mtmamba.metrics.boundary import BoundaryMeter
from mtmamba.metrics.boundary_match import Matching
from mtmamba.metrics.constant import ConstantBaseline, best_constant, constant_baseline
from mtmamba.metrics.delta import BASELINES, load_baseline, multi_task_delta
from mtmamba.metrics.meters import DepthMeter, LabelMeter, NormalMeter, SaliencyMeter

__all__ = [
    "BASELINES",
    "BOUNDARY_TOLERANCE",
    "BoundaryMeter",
    "ConstantBaseline",
    "Definitions",
    "DepthMeter",
    "Figures",
    "LabelMeter",
    "Matching",
    "Meter",
    "NormalMeter",
    "SaliencyMeter",
    "Scoreboard",
    "best_constant",
    "constant_baseline",
    "load_baseline",
    "meter_for",
    "multi_task_delta",
    "or_null",
    "plain",
    "predict",
]
