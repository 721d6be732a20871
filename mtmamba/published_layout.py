"""Where every tensor of a published checkpoint is in our model, for MTMamba and MTMamba++.

Published: OpenMMLab's Swin and one module a task, as the papers' authors' checkpoints hold them. Ours: timm's Swin and tasks
stacked along a leading dimension. T tasks, K = 4 directions, D inner channels, C channels of the finest level.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mtmamba.config import ModelConfig

Shape = tuple[int, ...]
STAGES = 3
PAIR = ("weight", "bias")


def _same(shape: Shape, _tasks: int) -> Shape:
    return shape


def _stacked(shape: Shape, _tasks: int) -> Shape:
    """[T, ...] -> [...]"""
    return shape[1:]


def _channels(shape: Shape, tasks: int) -> Shape:
    """Grouped convolutions, [T*D, ...] -> [D, ...]"""
    return shape[0] // tasks, *shape[1:]


def _joined(shape: Shape, _tasks: int) -> Shape:
    """[T, K, D, ...] -> [K*D, ...]"""
    return shape[1] * shape[2], *shape[3:]


def _pointwise(shape: Shape, _tasks: int) -> Shape:
    """A linear layer that is published as a 1x1 convolution."""
    return *shape, 1, 1


def _stacked_pointwise(shape: Shape, _tasks: int) -> Shape:
    return *shape[1:], 1, 1


@dataclass(frozen=True, kw_only=True)
class Place:
    """One tensor of ours and the published tensors, one a task or shared by all, that are stacked to make it.

    published_shape: (shape of ours, number of published tensors) -> the shape of each of them.
    permute: gives the order of the last axis of ours in terms of the published one (patch merging only), or None.
    """

    ours: str
    published: tuple[str, ...]
    published_shape: Callable[[Shape, int], Shape] = _same
    permute: Callable[[int], Tensor] | None = None


def places(config: ModelConfig) -> Iterator[Place]:
    """Every tensor of the model and, exactly once each, every tensor of the published one but its derived buffers."""
    yield from _encoder_places(config)
    plus = config.variant == "mtmamba++"
    for stage in range(STAGES):
        for ours, published, shape in _plus_stage(stage) if plus else _stage(stage, config.cross_task):
            if "ctm." in ours and config.cross_task == "none":
                continue
            yield Place(ours=f"stages.{stage}.{ours}", published=_names(published, config.tasks), published_shape=shape)
    for task in config.tasks:
        for ours, published, shape in _PLUS_HEAD if plus else _HEAD:
            yield Place(ours=f"heads.{task}.{ours}", published=(published.format(task=task),), published_shape=shape)


_BLOCK_PARTS = {
    "norm1": "norm1",
    "attn.qkv": "attn.w_msa.qkv",
    "attn.proj": "attn.w_msa.proj",
    "norm2": "norm2",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}


def _encoder_places(config: ModelConfig) -> Iterator[Place]:
    def place(ours: str, published: str, permute: Callable[[int], Tensor] | None = None) -> Place:
        return Place(ours=f"encoder.{ours}", published=(f"backbone.{published}",), permute=permute)

    for tail in PAIR:
        yield place(f"patch_embed.proj.{tail}", f"patch_embed.projection.{tail}")
        yield place(f"patch_embed.norm.{tail}", f"patch_embed.norm.{tail}")
    for level, depth in enumerate(config.depths):
        for tail in PAIR:
            yield place(f"norms.{level}.{tail}", f"norm{level}.{tail}")
        for block in range(depth):
            ours, theirs = f"layers.{level}.blocks.{block}", f"stages.{level}.blocks.{block}"
            table = "relative_position_bias_table"
            yield place(f"{ours}.attn.{table}", f"{theirs}.attn.w_msa.{table}")
            for our_part, their_part in _BLOCK_PARTS.items():
                for tail in PAIR:
                    yield place(f"{ours}.{our_part}.{tail}", f"{theirs}.{their_part}.{tail}")
        if level > 0:
            for tail in ("norm.weight", "norm.bias", "reduction.weight"):
                yield place(f"layers.{level}.downsample.{tail}", f"stages.{level - 1}.downsample.{tail}", _merge_order)


def _merge_order(features: int) -> Tensor:
    """Patch merging's 4C inputs: published c*4 + kh*2 + kw, timm (kw*2 + kh)*C + c. Index of the published, by timm's."""
    return torch.arange(features).reshape(-1, 2, 2).permute(2, 1, 0).flatten()  # [C, kh, kw] -> [kw, kh, C]


Row = tuple[str, str, Callable[[Shape, int], Shape]]  # ours, published (see _names), shape of each published tensor


def _names(published: str, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """{task} stands for each task, {op} for each SS2D of the cross-task block: the tasks', then the shared one."""
    if "{op}" in published:
        return *(published.format(op=f"op.{task}") for task in tasks), published.format(op="op_share")
    return tuple(published.format(task=task) for task in tasks) if "{task}" in published else (published,)


def _rows(ours: str, published: str, tails: tuple[str, ...], shape: Callable[[Shape, int], Shape]) -> list[Row]:
    return [(f"{ours}.{tail}", f"{published}.{tail}", shape) for tail in tails]


_SS2D_PARTS: tuple[Row, ...] = (
    ("conv_weight", "conv2d.weight", _channels),
    ("conv_bias", "conv2d.bias", _channels),
    ("x_proj", "x_proj_weight", _stacked),
    ("dt_weight", "dt_projs_weight", _stacked),
    ("dt_bias", "dt_projs_bias", _stacked),
    ("A_log", "A_logs", _joined),
    ("D", "Ds", _joined),
    ("norm.weight", "out_norm.weight", _stacked),
    ("norm.bias", "out_norm.bias", _stacked),
)


def _mamba(ours: str, published: str, linears: tuple[str, ...]) -> list[Row]:
    """SS2D and the linear layers around it, which are one module in the published code."""
    scan = [(f"{ours}.ss2d.{our_part}", f"{published}.{part}", shape) for our_part, part, shape in _SS2D_PARTS]
    return scan + [
        row for name in linears for row in _rows(f"{ours}.{name}", f"{published}.{name}", PAIR[:1], _stacked)
    ]


def _join(stage: int, concat_weight: Callable[[Shape, int], Shape]) -> list[Row]:
    """Patch expand and the layer that joins the skip."""
    expand, concat = f"expand_layers.{{task}}_{stage}", f"concat_layers.{{task}}_{stage}"
    return [
        *_rows("expand", expand, ("expand.weight", "norm.weight", "norm.bias"), _stacked),
        ("concat.weight", f"{concat}.weight", concat_weight),
        ("concat.bias", f"{concat}.bias", _stacked),
    ]


def _stage(stage: int, cross_task: str) -> list[Row]:
    rows = _join(stage, _stacked)
    for index in (0, 1):
        stm = f"block_{index + 1}.{{task}}_{stage}"
        rows += _rows(f"stm.{index}.norm", f"{stm}.norm", PAIR, _stacked)
        rows += _mamba(f"stm.{index}", f"{stm}.op", ("in_proj", "out_proj"))
    ctm = f"block_3.{stage}"
    if cross_task != "own":
        rows += _rows("ctm.norm_shared", f"{ctm}.norm_share", PAIR, _same)
        rows.append(("ctm.in_proj_shared.weight", f"{ctm}.op_share.in_proj.weight", _stacked))
    if cross_task != "shared":
        rows += _rows("ctm.norm", f"{ctm}.norm.{{task}}", PAIR, _stacked)
        rows.append(("ctm.in_proj.weight", f"{ctm}.op.{{task}}.in_proj.weight", _stacked))
    if cross_task == "learned":
        rows.append(("ctm.gate.weight", f"{ctm}.in_proj.{{task}}.weight", _stacked))
    scan = {"own": "op.{task}", "shared": "op_share"}.get(cross_task, "{op}")
    rows += _mamba("ctm", f"{ctm}.{scan}", ())
    return [*rows, ("ctm.out_proj.weight", f"{ctm}.out_proj.{{task}}.weight", _stacked)]


def _plus_stage(stage: int) -> list[Row]:
    rows = _join(stage, _stacked_pointwise)
    for index in (0, 1):
        stm = f"block_stm.{{task}}_{stage}.{index}"
        rows += _rows(f"stm.{index}.norm", f"{stm}.norm", PAIR, _stacked)
        rows += _mamba(f"stm.{index}", f"{stm}.op", ("in_proj", "out_proj"))
    ctm = f"block_ctm.{stage}.0"
    rows += _rows("ctm.norm_shared", f"{ctm}.norm_share", PAIR, _same)
    for layer in ("0", "1"):
        rows += _rows(f"ctm.conv_shared.{layer}", f"{ctm}.conv_share.{layer}", PAIR, _same)
    rows += _rows("ctm.norm", f"{ctm}.norm.{{task}}", PAIR, _stacked)
    return rows + _mamba("ctm", f"{ctm}.op.{{task}}", ("in_proj", "in_proj_cross", "out_proj"))


_HEAD: list[Row] = [
    *_rows("expand", "final_expand.{task}", ("expand.weight", "norm.weight", "norm.bias"), _stacked),
    ("project.weight", "final_project.{task}.weight", _pointwise),
    ("project.bias", "final_project.{task}.bias", _same),
]
_PLUS_HEAD: list[Row] = [
    *_rows("conv", "final_expand.{task}.0", PAIR, _same),
    *_rows("norm", "final_expand.{task}.1", (*PAIR, "running_mean", "running_var", "num_batches_tracked"), _same),
    *_rows("project", "final_project.{task}", PAIR, _same),
]
