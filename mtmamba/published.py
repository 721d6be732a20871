"""The published checkpoints' layout: reading a configuration off it, and the way to and from ours (`published_layout`)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mtmamba.config import ModelConfig
from mtmamba.errors import MtmError
from mtmamba.published_layout import places
from mtmamba.tasks import DATASETS, Dataset

DERIVED = ".relative_position_index"  # a buffer in the published files; computed here


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
    data = _fitting_dataset({task: shape(f"final_project.{task}.weight")[0] for task in tasks})
    depths, heads = [], []
    for level in range(4):
        blocks = {m[1] for name in state if (m := re.match(rf"backbone\.stages\.{level}\.blocks\.(\d+)\.", name))}
        depths.append(len(blocks))
        heads.append(shape(f"backbone.stages.{level}.blocks.0.attn.w_msa.relative_position_bias_table")[1])
    bias_rows = shape("backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table")[0]
    embed_dim = shape("backbone.patch_embed.projection.weight")[0]
    plus = any(name.startswith("block_stm.") for name in state)
    stm = f"block_stm.{tasks[0]}_2.0" if plus else f"block_1.{tasks[0]}_2"
    inner, d_state = shape(f"{stm}.op.A_logs")
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
        variant="mtmamba++" if plus else "mtmamba",
        cross_task=_cross_task(set(state), plus),
    )


def _fitting_dataset(channels: dict[str, int]) -> Dataset:
    """The dataset with these tasks (name -> channels), all of its tasks if there is one such."""
    fitting = [
        data
        for data in DATASETS.values()
        if channels.items() <= {task.name: task.channels for task in data.tasks}.items() and channels
    ]
    if not fitting:
        raise MtmError(f"published checkpoint: its tasks {channels} (name: channels) fit none of {', '.join(DATASETS)}")
    return next((data for data in fitting if len(data.tasks) == len(channels)), fitting[0])


def _cross_task(names: set[str], plus: bool) -> str:
    """`ModelConfig.cross_task` by the parts of the cross-task block that are there."""

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    if not has(r"block_(3|ctm)\."):
        return "none"
    if plus or has(r"block_3\.\d\.in_proj\."):  # the gate
        return "learned"
    return "shared" if has(r"block_3\.\d\.op_share\.") else "own"


def from_published(
    state: Mapping[str, Tensor], config: ModelConfig, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Our state dict from a published one. shapes: name -> shape of every tensor of our model.

    Raises MtmError naming the tensors that are missing, unexpected or of the wrong shape.
    """
    state = _bare(state)
    all_places = list(places(config))
    wanted = {name for place in all_places for name in place.published}
    found = {name for name in state if not name.endswith(DERIVED)}
    _refuse("missing", wanted - found)
    _refuse("unexpected", found - wanted)
    result = {}
    for place in all_places:
        tensors = [state[name] for name in place.published]
        shape = tuple(shapes[place.ours])
        expected = place.published_shape(shape, len(tensors))
        for name, tensor in zip(place.published, tensors, strict=True):
            if tuple(tensor.shape) != expected:
                raise MtmError(
                    f"published checkpoint: tensor {name} has shape {tuple(tensor.shape)}, expected {expected}; "
                    "the file does not fit its own configuration"
                )
        value = torch.stack(tensors).reshape(shape)
        result[place.ours] = value[..., place.permute(value.shape[-1])] if place.permute else value
    return result


def to_published(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The published state dict of ours, the inverse of `from_published` bit for bit (without the derived buffers)."""
    result: dict[str, Tensor] = {}
    for place in places(config):
        value = state[place.ours]
        if place.permute:
            value = value[..., torch.argsort(place.permute(value.shape[-1]))]
        count = len(place.published)
        parts = value.reshape(count, *place.published_shape(tuple(value.shape), count))
        result.update(zip(place.published, parts.unbind(0), strict=True))
    return result


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _refuse(what: str, names: set[str]) -> None:
    if names:
        shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise MtmError(f"published checkpoint: {what} tensors: {shown}; the file is not an MTMamba model as published")
