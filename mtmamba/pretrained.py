"""ImageNet weights for the Swin encoder: from the hub through timm, or from a local file in timm's or Microsoft's layout."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import timm
import torch
from timm.models.swin_transformer import checkpoint_filter_fn
from torch import Tensor

from mtmamba.checkpoint import read_content
from mtmamba.config import ModelConfig
from mtmamba.errors import MtmError
from mtmamba.files import existing_file
from mtmamba.model import MTMamba
from mtmamba.swin import SwinEncoder

log = logging.getLogger(__name__)

IMAGENET = "imagenet"
"""The source that stands for the hub's weights of the encoder's size (`HUB`)."""

HUB = {  # (embed_dim, depths, num_heads) -> timm's name; ImageNet-22k where the papers' encoders start from it
    (96, (2, 2, 6, 2), (3, 6, 12, 24)): "swin_tiny_patch4_window7_224.ms_in1k",
    (96, (2, 2, 18, 2), (3, 6, 12, 24)): "swin_small_patch4_window7_224.ms_in1k",
    (128, (2, 2, 18, 2), (4, 8, 16, 32)): "swin_base_patch4_window12_384.ms_in22k",
    (192, (2, 2, 18, 2), (6, 12, 24, 48)): "swin_large_patch4_window12_384.ms_in22k",
}

DROPPED = ("head.", "norm.")  # the classifier and the norm in front of it: dense prediction has norms of its own
OWN = "norms."  # one a level, which no classifier has: they start as they are
BIAS_TABLE = "relative_position_bias_table"
FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class PretrainedReport:
    """Where every tensor went, by name. source: the file or the hub's model. loaded: encoder tensors that were set;
    interpolated: those of them whose position-bias table had another window's size; dropped: classifier tensors left out;
    kept: encoder tensors that no classifier has (the levels' norms), left as they were."""

    source: str
    loaded: tuple[str, ...]
    interpolated: tuple[str, ...]
    dropped: tuple[str, ...]
    kept: tuple[str, ...]


def load_pretrained_encoder(model: MTMamba, source: str | Path) -> PretrainedReport:
    """Set the encoder's weights, in place, from ImageNet ones.

    source: a local file (.safetensors, .pth, ... of a timm or an original Swin Transformer), `imagenet` (the hub's weights
    of this encoder's size) or any of timm's Swin names, such as `swin_tiny_patch4_window7_224.ms_in1k`. Position-bias tables
    of another window are interpolated (timm's `resize_rel_pos_bias_table`); all other tensors must fit.
    Raises MtmError for a file that is none, a name or a network that is not there, and for missing, unexpected and
    misshapen tensors, naming them; the model is then unchanged.
    """
    encoder = model.encoder
    if isinstance(source, Path) or Path(source).suffix in FILE_SUFFIXES or Path(source).exists():
        state, source = _read(Path(source)), str(source)
    else:
        source = _hub_name(model.config) if source == IMAGENET else source
        state = _download(source)
    dropped = tuple(name for name in state if name.startswith(DROPPED))
    filtered = _to_timm({name: tensor for name, tensor in state.items() if name not in dropped}, encoder, source)
    _check(filtered, encoder, source)
    wanted = encoder.state_dict()
    interpolated = tuple(
        name for name in filtered if name.endswith(BIAS_TABLE) and state[name].shape != filtered[name].shape
    )
    kept = tuple(name for name in wanted if name.startswith(OWN))
    encoder.load_state_dict({**{name: wanted[name] for name in kept}, **filtered})
    log.info("%s: %d encoder tensors loaded, %d interpolated", source, len(filtered), len(interpolated))
    return PretrainedReport(
        source=source, loaded=tuple(filtered), interpolated=interpolated, dropped=dropped, kept=kept
    )


def _hub_name(config: ModelConfig) -> str:
    key = (config.embed_dim, config.depths, config.num_heads)
    if key not in HUB:
        raise MtmError(
            f"there are no ImageNet weights for an encoder of embed_dim {config.embed_dim}, depths {config.depths}, heads "
            f"{config.num_heads}; choose swin-tiny, -small, -base or -large, or name a file"
        )
    return HUB[key]


def _download(name: str) -> dict[str, Tensor]:
    if not name.startswith("swin_") or not timm.is_model(name.split(".")[0]):
        raise MtmError(
            f"{name!r} is neither a file nor one of timm's Swin models; give {IMAGENET}, a name such as "
            f"{next(iter(HUB.values()))}, or a local file"
        )
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:  # no network, no such weights, an interrupted download
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise MtmError(
            f"{name}: downloading the weights failed ({reason}); check the network, or download the file elsewhere and name it"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a local file by name; data only, no code in it is run."""
    if path.suffix != ".safetensors":
        content = read_content(path)
        for wrapper in ("model", "state_dict"):
            content = content.get(wrapper, content)
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise MtmError(
                f"{path}: expected a state_dict (tensors by name), found other things; save the state_dict alone"
            )
        return content
    existing_file(path, "weights")
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise MtmError(
            f"{path}: expected weights, found a truncated or foreign file ({error}); copy it again"
        ) from error


def _to_timm(state: Mapping[str, Tensor], encoder: SwinEncoder, source: str) -> dict[str, Tensor]:
    """timm's own filter: Microsoft's layout to timm's, position-bias tables to the encoder's window."""
    wanted = encoder.state_dict()
    tables = {name for name in state if name.endswith(BIAS_TABLE)}
    _refuse(source, [f"unexpected {name}" for name in tables - wanted.keys()])  # the filter would not survive them
    # Before 1.0.31 timm knows its own layout by the classifier alone, which has been dropped.
    marker = {} if "layers.0.downsample.reduction.weight" in state else {"head.fc.weight": torch.empty(0)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's interpolation indexes in ways that torch warns about
        return {
            name: tensor
            for name, tensor in checkpoint_filter_fn({**state, **marker}, encoder).items()
            if name not in marker
        }


def _check(state: Mapping[str, Tensor], encoder: SwinEncoder, source: str) -> None:
    wanted = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith(OWN)}
    problems = [f"missing {name}" for name in wanted.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    _refuse(source, problems)


def _refuse(source: str, problems: list[str]) -> None:
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise MtmError(f"{source}: these weights are not this encoder's: {shown}; choose weights of the same Swin size")
