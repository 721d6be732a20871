"""The model is the paper's: parameter counts, the published code's numbers, tasks stacked or apart, any size."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from mtmamba import MTMamba, load_checkpoint, preset
from mtmamba.errors import MtmError
from mtmamba.published import to_published
from mtmamba.ss2d import SCAN_PARAMETERS
from mtmamba.swin import roll


@pytest.fixture(scope="module")
def golden(golden_folder):
    model = load_checkpoint(golden_folder / "mtmamba_nyud_tiny.pth.tar")
    return model, dict(np.load(golden_folder / "mtmamba_nyud_tiny.npz"))


@pytest.mark.parametrize(
    "dataset, count", [("nyudv2", 307_999_137), ("pascal-context", 335_858_326), ("cityscapes", 252_271_688)]
)
def test_parameter_counts_of_the_paper(dataset, count):
    with torch.device("meta"):
        model = MTMamba(preset(dataset, "swin-large"))
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(p.numel() for p in model.encoder.parameters()) == 195_201_204


def test_nano_has_about_a_million_parameters():
    with torch.device("meta"):
        model = MTMamba(preset("nyudv2", "nano"))
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 1.3e6


def test_encoder_levels_of_the_published_code(golden):
    model, arrays = golden
    with torch.no_grad():
        levels = model.encoder(torch.from_numpy(arrays["image"]))
    for i, level in enumerate(levels):
        np.testing.assert_allclose(level.permute(0, 3, 1, 2), arrays[f"feat.{i}"], rtol=0, atol=1e-5)


def test_outputs_of_the_published_code(golden):
    model, arrays = golden
    with torch.no_grad():
        outputs = model(torch.from_numpy(arrays["image"]))
    assert list(outputs) == ["semseg", "depth", "normals", "edge"]
    for task, output in outputs.items():
        np.testing.assert_allclose(output, arrays[f"out.{task}"], rtol=0, atol=1e-4)


def test_stacked_tasks_equal_separate_decoders():
    """With T tasks of equal weights in all places that the tasks do not share, each answers as the others do; and each task's
    answer depends on its own weights alone, except through the cross-task block."""
    config = dataclasses.replace(preset("synthetic", "nano"), drop_path_decoder=0.0, tasks=("depth", "edge"))
    torch.manual_seed(0)
    model = MTMamba(config).eval()
    stage = model.stages[2]
    x, skip = torch.randn(1, 2, 5, 6, 24), torch.randn(1, 10, 12, 12)
    before_ctm = {}
    stage.ctm.register_forward_hook(lambda module, inputs, output: before_ctm.update(x=inputs[0]))
    with torch.no_grad():
        stage(x, skip)
        stacked = before_ctm["x"]
        for t in range(2):
            single = MTMamba(dataclasses.replace(config, tasks=(config.tasks[t],))).stages[2].eval()
            single.load_state_dict(_task_slice(stage.state_dict(), single.state_dict(), t))
            single.ctm.register_forward_hook(lambda module, inputs, output: before_ctm.update(x=inputs[0]))
            single(x[:, t : t + 1], skip)
            torch.testing.assert_close(before_ctm["x"], stacked[:, t : t + 1], rtol=0, atol=1e-5)


def _task_slice(state, single, t):
    """State of a one-task stage from a many-task one's; the cross-task block stays the single's own."""
    return {
        name: tensor if name.startswith("ctm.") else state[name].reshape(-1, *tensor.shape)[t]
        for name, tensor in single.items()
    }


@pytest.mark.parametrize("height, width", [(64, 96), (50, 70), (33, 31)])
def test_any_size_gives_outputs_of_that_size(golden, height, width):
    model, _ = golden
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, height, width))
    for task in model.config.task_list:
        assert outputs[task.name].shape == (2, task.channels, height, width)
        assert torch.isfinite(outputs[task.name]).all()


def test_padding_is_at_the_bottom_and_right(golden):
    model, arrays = golden
    image = torch.from_numpy(arrays["image"])
    padded = image.clone()
    padded[:, :, 50:] = padded[..., 70:] = 0
    with torch.no_grad():
        cropped, whole = model(image[:, :, :50, :70]), model(padded)
    for task in cropped:
        torch.testing.assert_close(cropped[task], whole[task][:, :, :50, :70])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_leaves_the_scans_parameters_in_float32(dtype):
    torch.manual_seed(0)
    model, image = MTMamba(preset("nyudv2", "nano")).eval(), torch.randn(1, 3, 64, 96)
    lower = copy.deepcopy(model).to(dtype)
    full = {name: parameter for name, parameter in lower.named_parameters() if parameter.dtype == torch.float32}
    assert {name.rsplit(".", 1)[1] for name in full} == set(SCAN_PARAMETERS)
    assert all(torch.equal(full[name], parameter) for name, parameter in model.named_parameters() if name in full)
    assert {parameter.dtype for parameter in lower.parameters()} == {torch.float32, dtype}
    assert {parameter.dtype for parameter in lower.double().parameters()} == {torch.float64}
    with torch.inference_mode():
        expected, outputs = model(image), copy.deepcopy(model).to(dtype)(image.to(dtype))
    for task, y in expected.items():
        assert outputs[task].dtype == dtype
        assert (outputs[task] - y).abs().max() < (0.02 if dtype == torch.float16 else 0.15) * y.abs().max()


def test_cityscapes_answers_at_twice_the_size():
    model = MTMamba(preset("cityscapes", "nano")).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 64, 96))
    assert outputs["semseg"].shape == (1, 19, 128, 192)


def test_roll_is_torchs():
    x = torch.randn(2, 5, 6, 3)
    assert torch.equal(roll(x, 2), torch.roll(x, (-2, -2), dims=(1, 2)))
    assert torch.equal(roll(roll(x, 2), -2), x)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = MTMamba(preset("synthetic", "nano")).train()
    outputs = model(torch.randn(1, 3, 64, 64))
    sum(output.square().mean() for output in outputs.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_published_layout_round_trips_bit_for_bit(golden, golden_folder):
    model, _ = golden
    original = torch.load(golden_folder / "mtmamba_nyud_tiny.pth.tar", weights_only=True)["model"]
    written = to_published(model.state_dict(), model.config)
    original = {k.removeprefix("module."): v for k, v in original.items() if not k.endswith("relative_position_index")}
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        assert written[name].shape == tensor.shape, name
        assert torch.equal(written[name], tensor), name


def test_config_rejects_unknown_keys_and_tasks():
    config = preset("nyudv2", "nano")
    with pytest.raises(MtmError, match="unknown keys.*colour"):
        type(config).from_dict({**config.to_dict(), "colour": 1})
    with pytest.raises(MtmError, match="no task 'sal'"):
        preset("nyudv2", "nano", tasks=("sal",))
    with pytest.raises(MtmError, match="unknown encoder 'resnet'"):
        preset("nyudv2", "resnet")
    assert type(config).from_dict(config.to_dict()) == config
