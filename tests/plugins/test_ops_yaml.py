"""plugins/ops.yaml against the ONNX schemas and the PyTorch operators: names, order, types, attributes, defaults."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from onnx import defs

import mtmamba.ops  # noqa: F401  registers torch.ops.mtmamba
from mtmamba.export.contract import DOMAIN, DOMAIN_VERSION, OPERATORS, register_schemas
from mtmamba.ops import cpu_kernel

CONTRACT: dict[str, Any] = yaml.safe_load((Path(__file__).resolve().parents[2] / "plugins" / "ops.yaml").read_text())
ONNX_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}


def test_domain_and_operators() -> None:
    assert (CONTRACT["domain"], CONTRACT["version"]) == (DOMAIN, DOMAIN_VERSION)
    assert set(CONTRACT["ops"]) == set(OPERATORS)
    assert all(op["limits"]["N"] == [1, cpu_kernel.MAX_STATES] for op in CONTRACT["ops"].values())


@pytest.mark.parametrize("op", CONTRACT["ops"])
def test_onnx_schema(op: str) -> None:
    register_schemas()
    schema = defs.get_schema(op, DOMAIN_VERSION, DOMAIN)
    wanted = CONTRACT["ops"][op]
    types = {ONNX_TYPES[name] for name in CONTRACT["types"]}
    found = [(i.name, set(i.types)) for i in schema.inputs]
    assert found == [(i["name"], {"tensor(float)"} if i.get("float32") else types) for i in wanted["inputs"]]
    assert [(o.name, set(o.types)) for o in schema.outputs] == [(wanted["output"]["name"], types)]
    assert set(schema.attributes) == {a["name"] for a in wanted["attributes"]}
    assert OPERATORS[op].attributes == {a["name"]: a["default"] for a in wanted["attributes"]}


@pytest.mark.parametrize("op", CONTRACT["ops"])
def test_torch_operator(op: str) -> None:
    wanted = CONTRACT["ops"][op]
    schema = getattr(torch.ops.mtmamba, wanted["torch"].removeprefix("mtmamba::")).default._schema
    names = [i["name"] for i in wanted["inputs"]] + [a["name"] for a in wanted["attributes"]]
    assert [argument.name for argument in schema.arguments] == names
    defaults = [argument.default_value for argument in schema.arguments[len(wanted["inputs"]) :]]
    assert [int(value) for value in defaults] == [a["default"] for a in wanted["attributes"]]


@pytest.mark.parametrize("op", CONTRACT["ops"])
def test_dimensions_are_described(op: str) -> None:
    wanted = CONTRACT["ops"][op]
    symbols = {c for t in [*wanted["inputs"], wanted["output"]] for dim in t["dims"] for c in dim if c.isupper()}
    assert symbols == set(wanted["dims"])
    assert set(wanted["limits"]) | set(wanted["multiples"]) | set(wanted["multiples"].values()) <= symbols


@pytest.mark.parametrize("op", CONTRACT["ops"])
def test_every_type_has_a_tolerance_and_what_was_measured_is_within(op: str) -> None:
    tolerances, measured = CONTRACT["ops"][op]["tolerances"], CONTRACT["ops"][op]["measured"]
    assert set(tolerances) == {"float64", *CONTRACT["types"]}
    for implementation, errors in measured.items():
        for kind, found in errors.items():
            allowed = [tolerances[kind]["normal"], tolerances[kind]["hostile"]]
            assert all(a <= b for a, b in zip(found, allowed, strict=True)), (implementation, kind)
