"""Reading exported ONNX files, and files that are not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mtmamba.errors import MtmError
from mtmamba.runtime.onnx_model import count_ops, load_onnx, without_bodies

MakeModel = Callable[..., onnx.ModelProto]


def test_read(scan_onnx: Path) -> None:
    model = load_onnx(scan_onnx)
    assert model.op_counts == {"SelectiveScan": 2}
    assert model.metadata.input_size == (64, 96)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(MtmError, match="expected a model file, found nothing there"):
        load_onnx(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"hello, this is no model", b"\x00" * 64, b"PK\x03\x04 a checkpoint"])
def test_not_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(MtmError, match=r"bad\.onnx: .*mtm-export"):
        load_onnx(tmp_path / "bad.onnx")


def test_truncated(scan_onnx: Path) -> None:
    whole = scan_onnx.read_bytes()
    for kept in (len(whole) // 2, len(whole) - 1):
        scan_onnx.write_bytes(whole[:kept])
        with pytest.raises(MtmError, match="mtm-export"):
            load_onnx(scan_onnx)


def test_invalid_graph(scan_onnx: Path) -> None:
    model = onnx.load(str(scan_onnx))
    model.graph.node[0].input[0] = "nobody makes this"
    onnx.save(model, str(scan_onnx))
    with pytest.raises(MtmError, match="not a valid ONNX model .*make it again with mtm-export"):
        load_onnx(scan_onnx)


def test_without_our_metadata(tmp_path: Path, make_model: MakeModel) -> None:
    onnx.save(make_model(metadata=False), str(tmp_path / "foreign.onnx"))
    with pytest.raises(MtmError, match=r"foreign\.onnx: expected mtmamba metadata, found none"):
        load_onnx(tmp_path / "foreign.onnx")


def test_size_not_fixed(tmp_path: Path, make_model: MakeModel) -> None:
    onnx.save(make_model(length="L"), str(tmp_path / "free.onnx"))
    with pytest.raises(MtmError, match="expected inputs of fixed size, found image with L"):
        load_onnx(tmp_path / "free.onnx")


def test_external_data(tmp_path: Path, make_model: MakeModel) -> None:
    path = tmp_path / "large.onnx"
    plain = make_model()
    onnx.save(plain, str(path), save_as_external_data=True, location="large.bin", size_threshold=0)
    assert (tmp_path / "large.bin").stat().st_size > 0
    found = load_onnx(path).proto.graph.initializer
    for before, after in zip(make_model().graph.initializer, found, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(before), onnx.numpy_helper.to_array(after))
    (tmp_path / "large.bin").unlink()
    with pytest.raises(MtmError, match=r"not a valid ONNX model .*large\.bin"):
        load_onnx(path)


def test_bodies_are_away_only_within_the_block(make_model: MakeModel) -> None:
    model = make_model()
    other = helper.make_function("mtmamba", "Other", ["x"], ["x2"], [], [helper.make_opsetid("", 18)])
    foreign = helper.make_function("theirs", "SelectiveScan", ["x"], ["x2"], [], [helper.make_opsetid("", 18)])
    model.functions.extend([other, foreign])
    before = model.SerializeToString()
    with without_bodies(model, frozenset({"SelectiveScan"})):
        assert [(body.domain, body.name) for body in model.functions] == [
            ("mtmamba", "Other"),
            ("theirs", "SelectiveScan"),
        ]
    assert model.SerializeToString() == before


def test_counts_in_subgraphs_and_functions(make_model: MakeModel) -> None:
    model = make_model(scans=1)
    scan = model.graph.node[3]
    block = helper.make_function("blocks", "Block", ["x"], ["y"], [scan, scan], [helper.make_opsetid("", 18)])
    model.functions.append(block)
    branch = helper.make_graph([scan], "then", [], [helper.make_tensor_value_info("u1", TensorProto.FLOAT, None)])
    model.graph.node.append(helper.make_node("If", ["condition"], ["z"], then_branch=branch, else_branch=branch))
    model.graph.node.extend([helper.make_node("Block", ["y"], [f"b{i}"], domain="blocks") for i in range(3)])
    assert count_ops(model) == {"SelectiveScan": 1 + 2 + 3 * 2}
