"""Checkpoints: round trip, and one clear sentence for everything that is not one."""

import pickle

import pytest
import torch

from mtmamba import MTMamba, load_checkpoint, preset, save_checkpoint
from mtmamba.checkpoint import read_content
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best.pth"
    torch.manual_seed(0)
    model = MTMamba(preset("nyudv2", "nano"))
    save_checkpoint(path, model, {"note": "hello"})
    return path, model


def test_round_trip(saved):
    path, model = saved
    loaded = load_checkpoint(path)
    assert loaded.config == model.config and not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert read_content(path)["extra"] == {"note": "hello"}


def refused(path, *words):
    with pytest.raises(MtmError) as caught:
        load_checkpoint(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence
    for word in words:
        assert word in sentence


def test_missing_empty_and_folder(tmp_path):
    refused(tmp_path / "none.pth", "found nothing there")
    (tmp_path / "empty.pth").touch()
    refused(tmp_path / "empty.pth", "empty file")
    refused(tmp_path, "found a folder")


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.9, 0.9999])
def test_truncated(saved, tmp_path, share):
    data = saved[0].read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(data[: max(1, int(len(data) * share))])
    refused(path, "truncated or foreign file")


def test_text_file(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("these are notes, not a checkpoint\n" * 20)
    refused(path, "expected")


class Evil:
    def __reduce__(self):
        return (open, ("evil-was-here", "w"))


def test_pickle_that_is_no_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"model": Evil()}))
    refused(path, "could run code")
    torch.save({"model": Evil()}, path)
    refused(path, "could run code")
    assert not (tmp_path / "evil-was-here").exists()


def test_foreign_state_dict(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "epoch": 3}, path)
    refused(path, "epoch, state_dict", "published one")
    torch.save([1, 2], path)
    refused(path, "found a list")


def test_other_version(saved, tmp_path):
    content = torch.load(saved[0], weights_only=True)
    torch.save({**content, "version": 99}, tmp_path / "new.pth")
    refused(tmp_path / "new.pth", "version 1 or 2", "found version 99")


def version_1(content):
    """The same checkpoint as version 1 had it: the cross-task block's SS2D in two, `shared` and `own` with a group a task."""
    tasks, mode = len(content["config"]["tasks"]), content["config"]["cross_task"]
    groups = {branch: count for branch, count in (("own", tasks), ("shared", 1)) if mode in (branch, "learned")}
    in_proj = {"in_proj.weight": "own.in_proj.weight", "in_proj_shared.weight": "shared.in_proj.weight"}
    state = {}
    for name, tensor in content["model"].items():
        block, _, part = name.partition(".ctm.")
        if part.startswith("ss2d."):
            size = len(tensor) // sum(groups.values())
            parts = tensor.split([count * size for count in groups.values()])
            state |= {f"{block}.ctm.{branch}.{part}": value for branch, value in zip(groups, parts, strict=True)}
        else:
            state[f"{block}.ctm.{in_proj.get(part, part)}" if part else name] = tensor
    return {**content, "version": 1, "model": dict(sorted(state.items(), reverse=True))}  # shared first, as it was


@pytest.mark.parametrize("cross_task", ["learned", "own", "shared"])
def test_version_1(tmp_path, cross_task):
    model = MTMamba(preset("nyudv2", "nano", cross_task=cross_task))
    save_checkpoint(tmp_path / "best.pth", model)
    content = version_1(read_content(tmp_path / "best.pth"))
    assert not content["model"].keys() >= model.state_dict().keys()
    torch.save(content, tmp_path / "old.pth")
    loaded = load_checkpoint(tmp_path / "old.pth").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_damaged_version_1(saved, tmp_path):
    content = version_1(read_content(saved[0]))
    content["model"]["stages.1.ctm.shared.ss2d.D"] = torch.zeros(2)
    torch.save(content, tmp_path / "old.pth")
    refused(tmp_path / "old.pth", "tensors do not fit each other")
    del content["model"]["stages.1.ctm.shared.ss2d.D"]
    torch.save(content, tmp_path / "old.pth")
    refused(tmp_path / "old.pth", "stages.1.ctm.ss2d.D has shape (4, 4, 24), expected (5, 4, 24)")


def test_missing_unexpected_and_misshapen_tensors_are_named(saved, tmp_path):
    content = torch.load(saved[0], weights_only=True)
    state = content["model"]
    first = next(iter(state))
    state["surplus"] = state.pop(first)
    state["heads.depth.project.bias"] = torch.zeros(2)
    torch.save(content, tmp_path / "odd.pth")
    refused(
        tmp_path / "odd.pth",
        f"missing {first}",
        "unexpected surplus",
        "heads.depth.project.bias has shape (2,), expected (1,)",
    )


def test_published_checkpoint_with_a_tensor_gone(golden_folder, tmp_path):
    content = torch.load(golden_folder / "mtmamba_nyud_tiny.pth.tar", weights_only=True)
    del content["model"]["module.block_3.1.op_share.Ds"]
    torch.save(content, tmp_path / "part.pth")
    with pytest.raises(MtmError, match=r"missing tensors: block_3\.1\.op_share\.Ds"):
        load_checkpoint(tmp_path / "part.pth")


def test_writing_where_one_cannot(saved, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("x")
    with pytest.raises(MtmError, match="cannot write into"):
        save_checkpoint(blocker / "best.pth", saved[1])


def test_interrupted_writing_leaves_the_old_file(tmp_path):
    target = tmp_path / "best.pth"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["best.pth"]


def test_one_changed_bit_of_a_weight_is_noticed(saved, tmp_path):
    """torch's reader holds nothing against the file's checksums."""
    path, model = saved
    data = bytearray(path.read_bytes())
    weight = next(iter(model.state_dict().values())).detach().numpy().tobytes()
    data[data.index(weight) + 1] ^= 1
    (tmp_path / "best.pth").write_bytes(data)
    refused(tmp_path / "best.pth", "the checksum of", "is wrong", "copy or download it again")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers(saved, tmp_path, value):
    content = read_content(saved[0])
    name = next(iter(content["model"]))
    content["model"][name].view(-1)[0] = value
    torch.save(content, tmp_path / "best.pth")
    refused(tmp_path / "best.pth", f"1 tensors hold NaN or infinite values, {name} first", "training diverged")
