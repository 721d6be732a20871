"""ImageNet encoders: our levels are timm's own, whatever layout and window the weights come in, and no tensor is lost."""

import dataclasses
import pickle
import warnings

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn

from mtmamba import MTMamba, preset
from mtmamba.config import ENCODERS
from mtmamba.errors import MtmError
from mtmamba.pretrained import HUB, load_pretrained_encoder

NANO = ENCODERS["nano"]
SIDE = 224  # its levels 56, 28, 14, 7 are multiples of window 7


def timm_swin(window=7, **changes):
    torch.manual_seed(1)
    sizes = {name: NANO[name] for name in ("embed_dim", "depths", "num_heads")} | changes
    # timm shifts no window that fills the map unless told to: the published encoder always does
    swin = SwinTransformer(
        img_size=SIDE if window == 7 else 12 * SIDE // 7,
        window_size=window,
        num_classes=5,
        always_partition=True,
        **sizes,
    )
    for name, tensor in swin.state_dict().items():
        tensor.copy_(0.2 * torch.randn(tensor.shape) + (1 if "norm" in name and name.endswith("weight") else 0))
    return swin.eval()


def microsoft(state):
    """The same weights as the original repository names them."""
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        renamed[".".join(parts).replace("head.fc.", "head.")] = tensor
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    return renamed


@pytest.fixture
def model():
    return MTMamba(dataclasses.replace(preset("nyudv2", "nano"), cross_task="none")).eval()


def save(path, state):
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("layout", ["timm", "microsoft"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_levels_are_timms(model, tmp_path, layout, suffix):
    swin = timm_swin()
    state = swin.state_dict() if layout == "timm" else microsoft(swin.state_dict())
    report = load_pretrained_encoder(model, save(tmp_path / f"swin{suffix}", state))
    image = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        theirs = swin.forward_intermediates(image, intermediates_only=True)
        ours = model.encoder(image)
    for level, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        expected = F.layer_norm(their.permute(0, 2, 3, 1), our.shape[-1:])  # our norms are fresh
        torch.testing.assert_close(our, expected, rtol=0, atol=1e-4, msg=lambda text, n=level: f"level {n}: {text}")
    assert not report.interpolated
    assert {name.split(".")[0] for name in report.dropped} == {"head", "norm"} and len(report.dropped) == 4
    assert set(report.kept) | set(report.loaded) == set(model.encoder.state_dict())
    assert all(name.startswith("norms.") for name in report.kept) and len(report.kept) == 8


def test_small_maps_are_where_timm_differs(model, tmp_path):
    """timm by default neither shifts nor pads a window that fills the map; the published encoder does."""
    swin = timm_swin()
    load_pretrained_encoder(model, save(tmp_path / "swin.pth", swin.state_dict()))
    swin.set_input_size((SIDE, SIDE), always_partition=False)
    image = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        theirs = [F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]) for x in swin.forward_intermediates(image)[1]]
        ours = model.encoder(image)
    for level in range(3):
        torch.testing.assert_close(ours[level], theirs[level], rtol=0, atol=1e-4)
    assert (ours[3] - theirs[3]).abs().max() > 1e-3


def test_window_12_weights_are_interpolated_to_7_as_timm_does(model, tmp_path):
    source = timm_swin(window=12)
    state = source.state_dict()
    report = load_pretrained_encoder(model, save(tmp_path / "swin.pth", microsoft(state)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's interpolation indexes in ways that torch warns about
        expected = checkpoint_filter_fn(dict(state), timm_swin())
    tables = [name for name in report.loaded if name.endswith("relative_position_bias_table")]
    assert len(tables) == 8 and set(report.interpolated) == set(tables)
    for name in tables:
        ours = model.encoder.state_dict()[name]
        assert torch.equal(ours, expected[name])
        # the middle of both tables is the offset (0, 0), which interpolation must not touch
        torch.testing.assert_close(ours[13 * 13 // 2], state[name][23 * 23 // 2])
    assert torch.equal(
        model.encoder.layers[2].downsample.reduction.weight, state["layers.2.downsample.reduction.weight"]
    )


def refused(model, source, *words):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(MtmError) as caught:
        load_pretrained_encoder(model, source)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tensors_that_do_not_fit_are_named(model, tmp_path):
    state = timm_swin().state_dict()
    gone = {name: tensor for name, tensor in state.items() if name != "layers.1.blocks.0.mlp.fc1.bias"}
    refused(model, save(tmp_path / "gone.pth", gone), "missing layers.1.blocks.0.mlp.fc1.bias")
    more = {**state, "layers.1.blocks.0.gamma": torch.zeros(3)}
    refused(model, save(tmp_path / "more.pth", more), "unexpected layers.1.blocks.0.gamma")
    wide = timm_swin(embed_dim=16).state_dict()
    refused(
        model, save(tmp_path / "wide.pth", wide), "layers.0.blocks.0.attn.proj.bias has shape (16,), expected (12,)"
    )
    deep = timm_swin(depths=(2, 2, 4, 2)).state_dict()
    refused(model, save(tmp_path / "deep.pth", deep), "unexpected layers.2.blocks.2.attn.relative_position_bias_table")


def test_files_that_are_no_weights(model, tmp_path):
    refused(model, tmp_path / "none.pth", "found nothing there")
    for suffix in (".pth", ".safetensors"):
        text = tmp_path / f"text{suffix}"
        text.write_text("no weights at all\n" * 30)
        refused(model, text, "expected")
        cut = save(tmp_path / f"cut{suffix}", timm_swin().state_dict())
        cut.write_bytes(cut.read_bytes()[:1000])
        refused(model, str(cut), "truncated or foreign file")
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"model": print}))
    refused(model, evil, "could run code")
    torch.save({"model": {"epoch": 3}}, tmp_path / "plain.pth")
    refused(model, tmp_path / "plain.pth", "expected a state_dict")


def test_hub_names(model, monkeypatch):
    refused(model, "imagenet", "no ImageNet weights for an encoder of embed_dim 12")
    refused(model, "resnet50", "neither a file nor one of timm's Swin models")
    refused(model, "swin_gigantic", "neither a file nor one of timm's Swin models")
    for (dim, depths, heads), name in HUB.items():
        presets = [
            e for e in ENCODERS.values() if (e["embed_dim"], e["depths"], e["num_heads"]) == (dim, depths, heads)
        ]
        assert len(presets) == 1 and f"window{presets[0]['window_size']}_" in name
        assert timm.models.get_pretrained_cfg(name) is not None and timm.models.is_model_pretrained(name)

    def offline(name, pretrained):
        assert pretrained
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    refused(model, "swin_tiny_patch4_window7_224.ms_in1k", "no route to the hub", "name it")


def test_weights_from_the_hub(model, monkeypatch):
    """All of the road but the network: timm hands over a model with its weights."""
    swin = timm_swin()
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: swin)
    report = load_pretrained_encoder(model, "swin_tiny_patch4_window7_224.ms_in1k")
    assert report.source == "swin_tiny_patch4_window7_224.ms_in1k"
    assert torch.equal(model.encoder.patch_embed.proj.weight, swin.patch_embed.proj.weight)


@pytest.mark.parametrize(
    "encoder, theirs",
    [
        ("swin-tiny", "swin_tiny_patch4_window7_224"),
        ("swin-small", "swin_small_patch4_window7_224"),
        ("swin-base", "swin_base_patch4_window12_384"),
        ("swin-large", "swin_large_patch4_window12_384"),
    ],
)
def test_encoder_presets_are_timms_models(encoder, theirs):
    with torch.device("meta"):
        ours = MTMamba(preset("nyudv2", encoder)).encoder
        swin = timm.create_model(theirs)
    expected = {
        name: tensor.shape for name, tensor in swin.state_dict().items() if not name.startswith(("head.", "norm."))
    }
    assert {n: t.shape for n, t in ours.state_dict().items() if not n.startswith("norms.")} == expected
    norms = sum(2 * info["num_chs"] for info in swin.feature_info)  # one after each level, weight and bias
    without = sum(p.numel() for n, p in swin.named_parameters() if not n.startswith(("head.", "norm.")))
    assert sum(p.numel() for p in ours.parameters()) == without + norms
