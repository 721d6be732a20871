"""MTMamba++ is the published code's; STM only, fixed gates and subsets of tasks are configuration; activation checkpointing
changes memory, not numbers."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from mtmamba import MTMamba, load_checkpoint, preset, save_checkpoint
from mtmamba import decoder as decoder_module
from mtmamba.config import ModelConfig
from mtmamba.errors import MtmError
from mtmamba.published import from_published, infer_config, to_published
from mtmamba.published_layout import places

VARIANTS = [
    ("mtmamba", "learned"),
    ("mtmamba", "own"),
    ("mtmamba", "shared"),
    ("mtmamba", "none"),
    ("mtmamba++", "learned"),
    ("mtmamba++", "none"),
]


@pytest.fixture(scope="module")
def golden(golden_folder):
    model = load_checkpoint(golden_folder / "mtmamba_plus_nyud_tiny.pth.tar")
    return model, dict(np.load(golden_folder / "mtmamba_plus_nyud_tiny.npz"))


def nano(variant="mtmamba", cross_task="learned", tasks=("depth", "edge"), seed=0, **changes):
    torch.manual_seed(seed)
    return MTMamba(dataclasses.replace(preset("nyudv2", "nano", tasks, variant, cross_task), **changes))


def test_mtmamba_plus_outputs_of_the_published_code(golden):
    model, arrays = golden
    assert model.config.variant == "mtmamba++" and model.config.cross_task == "learned"
    with torch.no_grad():
        outputs = model(torch.from_numpy(arrays["image"]))
    assert list(outputs) == ["semseg", "depth", "normals", "edge"]
    for task, output in outputs.items():
        np.testing.assert_allclose(output, arrays[f"out.{task}"], rtol=0, atol=1e-5)  # measured: 1.3e-6


@pytest.mark.parametrize(
    "dataset, variant, cross_task, count",
    [
        ("nyudv2", "mtmamba++", "learned", 315_021_249),
        ("pascal-context", "mtmamba++", "learned", 343_231_606),
        ("cityscapes", "mtmamba++", "learned", 258_595_976),
        ("nyudv2", "mtmamba", "none", 276_485_025),
    ],
)
def test_parameter_counts_with_swin_large(dataset, variant, cross_task, count):
    with torch.device("meta"):
        model = MTMamba(preset(dataset, "swin-large", variant=variant, cross_task=cross_task))
    assert sum(p.numel() for p in model.parameters()) == count


def test_published_plus_layout_round_trips_bit_for_bit(golden, golden_folder):
    model, _ = golden
    original = torch.load(golden_folder / "mtmamba_plus_nyud_tiny.pth.tar", weights_only=True)["model"]
    original = {k.removeprefix("module."): v for k, v in original.items() if not k.endswith("relative_position_index")}
    written = to_published(model.state_dict(), model.config)
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        assert written[name].shape == tensor.shape and written[name].dtype == tensor.dtype, name
        assert torch.equal(written[name], tensor), name


@pytest.mark.parametrize("variant, cross_task", VARIANTS)
@pytest.mark.parametrize("tasks", [("depth", "edge"), ("normals",)])
def test_every_variant_goes_the_published_road_and_back(variant, cross_task, tasks):
    """All values distinct, so that two tensors or axes in each other's place would show."""
    model = nano(variant, cross_task, tasks)
    state = model.state_dict()
    start = 0
    for name, tensor in state.items():
        state[name] = torch.arange(start, start + tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
        start += tensor.numel()
    published = to_published(state, model.config)
    config = infer_config(published)
    inferred = (
        "variant",
        "cross_task",
        "tasks",
        "embed_dim",
        "depths",
        "num_heads",
        "window_size",
        "d_state",
        "expand",
    )
    assert all(getattr(config, name) == getattr(model.config, name) for name in inferred)
    back = from_published(published, config, {name: tensor.shape for name, tensor in state.items()})
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert {place.ours for place in places(config)} == set(state)


def test_missing_and_misshapen_published_tensors_are_named(golden_folder, tmp_path):
    content = torch.load(golden_folder / "mtmamba_plus_nyud_tiny.pth.tar", weights_only=True)
    path = tmp_path / "part.pth"
    for name in ("block_ctm.1.0.op.depth.in_proj_cross.weight", "final_expand.edge.1.running_mean"):
        state = {k: v for k, v in content["model"].items() if k != f"module.{name}"}
        torch.save({"model": state}, path)
        with pytest.raises(MtmError, match=f"missing tensors: {name}"):
            load_checkpoint(path)
    name = "concat_layers.depth_0.weight"
    torch.save({"model": {**content["model"], f"module.{name}": content["model"][f"module.{name}"].squeeze()}}, path)
    with pytest.raises(MtmError, match=rf"{name} has shape \(32, 64\), expected \(32, 64, 1, 1\)"):
        load_checkpoint(path)


@pytest.mark.parametrize("variant, cross_task", VARIANTS)
def test_variants_train_save_and_load(variant, cross_task, tmp_path):
    model = nano(variant, cross_task).train()
    outputs = model(torch.randn(2, 3, 40, 70))
    assert {task: tuple(output.shape) for task, output in outputs.items()} == {
        "depth": (2, 1, 40, 70),
        "edge": (2, 1, 40, 70),
    }
    sum(output.square().mean() for output in outputs.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    save_checkpoint(tmp_path / "best.pth", model)
    loaded = load_checkpoint(tmp_path / "best.pth")
    assert loaded.config == model.config
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("cross_task, gate", [("own", 0.0), ("shared", 1.0)])
def test_fixed_gate_is_the_learned_one_held(cross_task, gate, monkeypatch):
    """Paper Table 6: the smaller model equals the whole one whose gate always answers 0 or 1."""
    whole, fixed = nano().eval(), nano(cross_task=cross_task, seed=1).eval()
    state = whole.state_dict()
    for name, tensor in fixed.state_dict().items():  # `ss2d` has the whole one's first groups, or its last
        tensor.copy_(state[name][: len(tensor)] if cross_task == "own" else state[name][-len(tensor) :])
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        free = whole(image)
        monkeypatch.setattr(decoder_module.torch, "sigmoid", lambda x: torch.full_like(x, gate))
        held, ours = whole(image), fixed(image)
    for task in held:
        torch.testing.assert_close(ours[task], held[task], rtol=0, atol=1e-5)
        assert (free[task] - held[task]).abs().max() > 1e-4


def test_without_cross_task_block_tasks_do_not_see_each_other():
    for variant in ("mtmamba", "mtmamba++"):
        separate, crossed = nano(variant, "none").eval(), nano(variant).eval()
        image = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            before = [model(image)["depth"] for model in (separate, crossed)]
            for model in (separate, crossed):
                model.stages[1].stm[0].in_proj.weight[1].mul_(2)  # of the other task, edge
            after = [model(image)["depth"] for model in (separate, crossed)]
        assert torch.equal(before[0], after[0])
        assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("variant", ["mtmamba", "mtmamba++"])
def test_any_subset_of_tasks(variant):
    names = ("semseg", "depth", "normals", "edge")
    image = torch.randn(1, 3, 32, 32)
    for count in (1, 2, 3):
        for tasks in itertools.islice(itertools.combinations(names, count), 2):
            with torch.no_grad():
                outputs = nano(variant, tasks=tasks[::-1]).eval()(image)
            assert tuple(outputs) == tasks[::-1]
            assert all(torch.isfinite(output).all() for output in outputs.values())


def test_cityscapes_of_mtmamba_plus_answers_at_twice_the_size():
    model = MTMamba(preset("cityscapes", "nano", variant="mtmamba++")).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 33, 70))
    assert outputs["semseg"].shape == (1, 19, 66, 140) and outputs["depth"].shape == (1, 1, 66, 140)


def test_configurations_written_before_there_were_variants():
    old = {k: v for k, v in preset("nyudv2", "nano").to_dict().items() if k not in ("variant", "cross_task")}
    assert ModelConfig.from_dict(old) == preset("nyudv2", "nano")


def test_variants_that_do_not_exist():
    with pytest.raises(MtmError, match="unknown variant 'mtmamba3'; known: mtmamba, mtmamba"):
        preset("nyudv2", "nano", variant="mtmamba3")
    with pytest.raises(MtmError, match="cross_task 'shared' is none of learned, none"):
        preset("nyudv2", "nano", variant="mtmamba++", cross_task="shared")


@pytest.mark.parametrize("variant", ["mtmamba", "mtmamba++"])
def test_activation_checkpointing_gives_the_same_gradients(variant):
    """Stochastic depth and batch statistics included: both steps draw the same numbers."""
    results = []
    for enabled in (False, True):
        model = nano(variant, drop_path_encoder=0.3, drop_path_decoder=0.3).train()
        model.activation_checkpointing(enabled)
        image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        kept = Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            loss = sum(output.square().mean() for output in model(image).values())
        loss.backward()
        results.append((kept.bytes, loss, model))
    (all_bytes, loss, model), (few_bytes, again, checkpointed) = results
    assert torch.equal(loss, again)
    for (name, p), q in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7, msg=name)
    for (name, p), q in zip(model.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(p, q), name
    assert few_bytes < all_bytes / 3


class Kept:
    """Counts the bytes that autograd keeps for the backward pass, each storage once."""

    def __init__(self):
        self.storages = {}

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(self, tensor):
        return tensor

    @property
    def bytes(self):
        return sum(self.storages.values())
