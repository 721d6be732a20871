"""`mtm-info`: what a model is made of and what it costs, from a checkpoint or from a preset."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from mtmamba.config import CROSS_TASK, ENCODERS, VARIANTS, ModelConfig, preset
from mtmamba.console import ImageSize, as_text, command, say
from mtmamba.errors import MtmError
from mtmamba.tasks import DATASETS

WIDTH = 100  # of the table, in characters


@command(epilog="Example: mtm-info --dataset nyudv2 --encoder swin-large, or mtm-info --ckpt best.pth")
@click.option(
    "--ckpt", type=click.Path(path_type=Path), help="Describe this checkpoint's model, ours or a published one."
)
@click.option("--dataset", type=click.Choice(list(DATASETS)), help="Describe the preset for this dataset.")
@click.option("--encoder", type=click.Choice(list(ENCODERS)), help="Of the preset.  [default: swin-large]")
@click.option("--variant", type=click.Choice(VARIANTS), help="Of the preset.  [default: mtmamba]")
@click.option("--cross-task", type=click.Choice(CROSS_TASK), help="Third decoder block.  [default: learned]")
@click.option("--size", type=ImageSize(), help="HEIGHTxWIDTH of the image, pixels.  [default: the model's]")
def main(
    ckpt: Path | None,
    dataset: str | None,
    encoder: str | None,
    variant: str | None,
    cross_task: str | None,
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    """Parameters, multiply-adds and weights of a model, stage by stage."""
    config = _config(ckpt, dataset, {"encoder": encoder, "variant": variant, "cross_task": cross_task})
    from mtmamba.info import model_cost  # torch is slow to import: not before the options are known to be good

    size = size or config.input_size
    *stages, total = model_cost(config, size)
    result = {
        "config": config.to_dict(),
        "size": list(size),
        "parameters": total.parameters,
        "encoder_parameters": sum(row.parameters for row in stages if row.name.startswith("encoder")),
        "multiply_adds": total.multiply_adds,
        "state_updates": total.state_updates,
        "paper_flops": total.paper_flops,
        "weights_mib": {"fp32": round(total.weights_mib(4), 1), "fp16": round(total.weights_mib(2), 1)},
        "stages": [{**asdict(row), "size": list(row.size)} for row in stages],
    }
    say(f"{config.variant} for {config.dataset}: {', '.join(config.tasks)}; one image of {size[0]}x{size[1]} pixels")
    say(_table(stages, total))
    say(
        f"Weights: {total.weights_mib(4):,.0f} MiB in FP32, {total.weights_mib(2):,.0f} MiB in FP16. "
        f"FLOPs as the papers count them: {total.paper_flops / 1e9:,.2f} G."
    )
    return result


def _config(ckpt: Path | None, dataset: str | None, choices: dict[str, str | None]) -> ModelConfig:
    given: dict[str, Any] = {name: value for name, value in choices.items() if value is not None}
    if (ckpt is None) == (dataset is None):
        raise MtmError("expected either a checkpoint or a preset; give --ckpt or --dataset")
    if dataset is not None:
        return preset(dataset, **given)
    if given:
        raise MtmError(
            f"--{', --'.join(given).replace('_', '-')}: a checkpoint has its own; leave it out beside --ckpt"
        )
    from mtmamba.checkpoint import load_checkpoint

    assert ckpt is not None
    return load_checkpoint(ckpt).config


def _table(stages: list[Any], total: Any) -> str:
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for title in ("map", "parameters", "FP32 MiB", "multiply-adds G", "state updates G", "papers' FLOPs G"):
        table.add_column(title, justify="right")
    for row in (*stages, total):
        table.add_row(
            row.name,
            f"{row.size[0]}x{row.size[1]}",
            f"{row.parameters:,}",
            f"{row.weights_mib():,.1f}",
            f"{row.multiply_adds / 1e9:,.2f}",
            f"{row.state_updates / 1e9:,.3f}",
            f"{row.paper_flops / 1e9:,.2f}",
            style="bold" if row is total else "",
        )
    return as_text(table, WIDTH)


if __name__ == "__main__":
    main()
