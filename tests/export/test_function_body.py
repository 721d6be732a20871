"""The operators as ONNX functions, in ONNX Runtime, against the float64 loop in the cases of all implementations."""

import numpy as np
import pytest
from cases import CASES, DTYPES, LONG, MAP, SCAN, TILES, Case, check_isolation, inputs, truth, type_of
from onnx_node import session_of

from mtmamba.export.function_body import TILE


def run(op, arrays, kind="float32", opset=20, **attributes):
    feeds = {name: value.astype(DTYPES[type_of(op, name, kind)]) for name, value in arrays.items()}
    (y,) = session_of(op, feeds, opset, **attributes).run(None, feeds)
    assert y.dtype == DTYPES[kind]
    return y


@pytest.mark.parametrize("kind", ["float32", "float16"])  # ONNX Runtime's Python interface hands over no bfloat16
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case}")
def test_case(case, kind):
    case.check(run(case.op, case.arrays(kind), kind, **case.attributes), kind)


@pytest.mark.parametrize("opset", [18, 19, 20, 21, 22, 23])
@pytest.mark.parametrize("op", [SCAN, MAP])
def test_opsets(op, opset):
    Case(op=op).check(run(op, inputs(op), opset=opset), "float32")


def test_tiles_of_the_table_are_those_of_the_body():
    assert TILE in TILES


@pytest.mark.parametrize("op", [SCAN, MAP])
def test_fp16_tensors_are_computed_in_fp32(op):
    case = Case(op=op, sizes=LONG[op])
    expected = truth(case, "float16")
    found = run(op, case.arrays("float16"), "float16").astype(np.float64)
    assert np.abs(found - expected).max() <= 2**-11 * np.abs(expected).max() * 1.1  # the rounding of y alone


@pytest.mark.parametrize("op", [SCAN, MAP])
def test_non_finite_input_stays_in_its_channel(op):
    check_isolation(op, lambda arrays: run(op, arrays))
