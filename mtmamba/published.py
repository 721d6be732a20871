"""The published checkpoints' layout: its tensor names, and the way to and from ours.

Published: OpenMMLab's Swin and one module a task, as the paper's authors' checkpoints hold them. Ours: timm's Swin and tasks
stacked along a leading dimension. Every tensor of either side has its place in the other.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtmamba.config import ModelConfig
from mtmamba.errors import MtmError
from mtmamba.tasks import DATASETS

DERIVED = ".relative_position_index"  # a buffer in the published files; computed here
STAGES = 3


@dataclass(frozen=True, kw_only=True)
class _Place:
    """One tensor of ours and the published tensors, one a task, that are stacked to make it.

    permute: gives the order of the last axis of ours in terms of the published one (patch merging only), or None.
    """

    ours: str
    published: tuple[str, ...]
    permute: Callable[[int], Tensor] | None = None


def is_published(state: Mapping[str, object]) -> bool:
    """Whether these are the names of a published MTMamba state dict (with or without `module.`)."""
    return any(re.match(r"(module\.)?backbone\.patch_embed\.projection\.", str(name)) for name in state)


def infer_config(state: Mapping[str, Tensor]) -> ModelConfig:
    """The configuration a published state dict was made with, read off its tensors' names and shapes.

    Raises MtmError where a tensor that decides is missing, or the tasks' channels fit no known dataset.
    """
    state = _bare(state)

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise MtmError(
                f"published checkpoint: expected a tensor {name}, found none; the file is not a whole MTMamba model"
            )
        return tuple(state[name].shape)

    tasks = tuple(match[1] for name in state if (match := re.fullmatch(r"final_project\.(\w+)\.weight", name)))
    channels = {task: shape(f"final_project.{task}.weight")[0] for task in tasks}
    fitting = [
        data
        for data in DATASETS.values()
        if channels.items() <= {task.name: task.channels for task in data.tasks}.items() and channels
    ]
    if not fitting:
        raise MtmError(f"published checkpoint: its tasks {channels} (name: channels) fit none of {', '.join(DATASETS)}")
    data = next((data for data in fitting if len(data.tasks) == len(tasks)), fitting[0])
    depths, heads = [], []
    for level in range(4):
        blocks = {m[1] for name in state if (m := re.match(rf"backbone\.stages\.{level}\.blocks\.(\d+)\.", name))}
        depths.append(len(blocks))
        heads.append(shape(f"backbone.stages.{level}.blocks.0.attn.w_msa.relative_position_bias_table")[1])
    bias_rows = shape("backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table")[0]
    embed_dim = shape("backbone.patch_embed.projection.weight")[0]
    inner, d_state = shape(f"block_1.{tasks[0]}_2.op.A_logs")
    return ModelConfig(
        dataset=data.name,
        tasks=tasks,
        embed_dim=embed_dim,
        depths=(depths[0], depths[1], depths[2], depths[3]),
        num_heads=(heads[0], heads[1], heads[2], heads[3]),
        window_size=(round(bias_rows**0.5) + 1) // 2,
        input_size=data.input_size,
        output_scale=data.output_scale,
        d_state=d_state,
        expand=inner // (4 * embed_dim),
    )


def from_published(
    state: Mapping[str, Tensor], config: ModelConfig, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Our state dict from a published one. shapes: name -> shape of every tensor of our model.

    Raises MtmError naming the tensors that are missing, unexpected or of the wrong size.
    """
    state = _bare(state)
    places = list(_places(config))
    wanted = {name for place in places for name in place.published}
    found = {name for name in state if not name.endswith(DERIVED)}
    _refuse("missing", wanted - found)
    _refuse("unexpected", found - wanted)
    result = {}
    for place in places:
        tensors = [state[name] for name in place.published]
        expected = shapes[place.ours]
        for name, tensor in zip(place.published, tensors, strict=True):
            if tensor.numel() * len(tensors) != expected.numel():
                raise MtmError(
                    f"published checkpoint: tensor {name} has shape {tuple(tensor.shape)}, but {place.ours} {tuple(expected)} "
                    f"is made of {len(tensors)} such tensors; the file does not fit its own configuration"
                )
        value = torch.stack(tensors).reshape(expected)
        result[place.ours] = value[..., place.permute(value.shape[-1])] if place.permute else value
    return result


def to_published(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The published state dict of ours, the inverse of `from_published` bit for bit (without the derived buffers)."""
    result = {}
    for place in _places(config):
        value = state[place.ours]
        if place.permute:
            value = value[..., torch.argsort(place.permute(value.shape[-1]))]
        parts = value.reshape(len(place.published), *_published_shape(place, value))
        result.update(zip(place.published, parts.unbind(0), strict=True))
    return result


def _published_shape(place: _Place, value: Tensor) -> tuple[int, ...]:
    name, count = place.published[0], len(place.published)
    if name.startswith("final_project.") and name.endswith(".weight"):
        return (*value.shape, 1, 1)
    if name.endswith(".A_logs"):
        return -1, value.shape[-1]
    if name.endswith(".Ds"):
        return (-1,)
    if ".conv2d." in name:
        return (value.shape[0] // count, *value.shape[1:])
    stacked = (
        value.shape[0] == count and not name.startswith(("backbone.", "final_project.")) and ".norm_share." not in name
    )
    return tuple(value.shape[1:] if stacked else value.shape)


def _places(config: ModelConfig) -> Iterator[_Place]:
    yield from _encoder_places(config)
    for stage in range(STAGES):
        yield from _stage_places(config, stage)
    for task in config.tasks:
        for tail in ("expand.weight", "norm.weight", "norm.bias"):
            yield _Place(ours=f"heads.{task}.expand.{tail}", published=(f"final_expand.{task}.{tail}",))
        for tail in ("weight", "bias"):
            yield _Place(ours=f"heads.{task}.project.{tail}", published=(f"final_project.{task}.{tail}",))


def _encoder_places(config: ModelConfig) -> Iterator[_Place]:
    def place(ours: str, published: str, permute: Callable[[int], Tensor] | None = None) -> _Place:
        return _Place(ours=f"encoder.{ours}", published=(f"backbone.{published}",), permute=permute)

    pairs = ("weight", "bias")
    for tail in pairs:
        yield place(f"patch_embed.proj.{tail}", f"patch_embed.projection.{tail}")
        yield place(f"patch_embed.norm.{tail}", f"patch_embed.norm.{tail}")
    for level, depth in enumerate(config.depths):
        for tail in pairs:
            yield place(f"norms.{level}.{tail}", f"norm{level}.{tail}")
        for block in range(depth):
            ours, theirs = f"layers.{level}.blocks.{block}", f"stages.{level}.blocks.{block}"
            yield place(
                f"{ours}.attn.relative_position_bias_table", f"{theirs}.attn.w_msa.relative_position_bias_table"
            )
            for our_part, their_part in _BLOCK_PARTS.items():
                for tail in pairs:
                    yield place(f"{ours}.{our_part}.{tail}", f"{theirs}.{their_part}.{tail}")
        if level > 0:
            for tail in ("norm.weight", "norm.bias", "reduction.weight"):
                yield place(f"layers.{level}.downsample.{tail}", f"stages.{level - 1}.downsample.{tail}", _merge_order)


_BLOCK_PARTS = {
    "norm1": "norm1",
    "attn.qkv": "attn.w_msa.qkv",
    "attn.proj": "attn.w_msa.proj",
    "norm2": "norm2",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}


def _merge_order(features: int) -> Tensor:
    """Patch merging's 4C inputs: published c*4 + kh*2 + kw, timm (kw*2 + kh)*C + c. Index of the published, by timm's."""
    return torch.arange(features).reshape(-1, 2, 2).permute(2, 1, 0).flatten()  # [C, kh, kw] -> [kw, kh, C]


_SS2D_PARTS = {
    "conv_weight": "conv2d.weight",
    "conv_bias": "conv2d.bias",
    "x_proj": "x_proj_weight",
    "dt_weight": "dt_projs_weight",
    "dt_bias": "dt_projs_bias",
    "A_log": "A_logs",
    "D": "Ds",
    "norm.weight": "out_norm.weight",
    "norm.bias": "out_norm.bias",
}


def _stage_places(config: ModelConfig, stage: int) -> Iterator[_Place]:
    def place(ours: str, published: str) -> _Place:
        names = tuple(published.format(task=task) for task in config.tasks) if "{task}" in published else (published,)
        return _Place(ours=f"stages.{stage}.{ours}", published=names)

    for tail in ("expand.weight", "norm.weight", "norm.bias"):
        yield place(f"expand.{tail}", f"expand_layers.{{task}}_{stage}.{tail}")
    for tail in ("weight", "bias"):
        yield place(f"concat.{tail}", f"concat_layers.{{task}}_{stage}.{tail}")
    for index in (0, 1):
        ours, theirs = f"stm.{index}", f"block_{index + 1}.{{task}}_{stage}"
        for tail in ("norm.weight", "norm.bias"):
            yield place(f"{ours}.{tail}", f"{theirs}.{tail}")
        for tail in ("in_proj.weight", "out_proj.weight"):
            yield place(f"{ours}.{tail}", f"{theirs}.op.{tail}")
        for our_part, their_part in _SS2D_PARTS.items():
            yield place(f"{ours}.ss2d.{our_part}", f"{theirs}.op.{their_part}")
    block = f"block_3.{stage}"
    for tail in ("weight", "bias"):
        yield place(f"ctm.norm_shared.{tail}", f"{block}.norm_share.{tail}")
        yield place(f"ctm.norm.{tail}", f"{block}.norm.{{task}}.{tail}")
    yield place("ctm.gate.weight", f"{block}.in_proj.{{task}}.weight")
    yield place("ctm.out_proj.weight", f"{block}.out_proj.{{task}}.weight")
    for ours, theirs in (("shared", f"{block}.op_share"), ("own", f"{block}.op.{{task}}")):
        yield place(f"ctm.{ours}.in_proj.weight", f"{theirs}.in_proj.weight")
        for our_part, their_part in _SS2D_PARTS.items():
            yield place(f"ctm.{ours}.ss2d.{our_part}", f"{theirs}.{their_part}")


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _refuse(what: str, names: set[str]) -> None:
    if names:
        shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise MtmError(f"published checkpoint: {what} tensors: {shown}; the file is not an MTMamba model as published")
