"""`mtm-data`: look at a labelled dataset before training on it."""

from pathlib import Path
from typing import Any

import click

from mtmamba.console import HELP, command, progress, say
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path, check_output
from mtmamba.tasks import DATASETS

SCENES = 8


@command(epilog="Example: mtm-data check nyudv2 /data/NYUDv2 --output nyudv2.png")
@click.argument("name", type=click.Choice(list(DATASETS)))
@click.argument("root", type=click.Path(path_type=Path), required=False)
@click.option("--split", type=click.Choice(["train", "val"]), multiple=True, help="Only this one.  [default: both]")
@click.option("--samples", type=click.IntRange(min=1), default=8, help="Items of each split to decode, spread over it.")
@click.option("--all", "every", is_flag=True, help="Decode every item instead: finds every damaged file.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Draw the first samples with their labels: a .png file."
)
def check(
    name: str, root: Path | None, split: tuple[str, ...], samples: int, every: bool, output: Path | None
) -> dict[str, Any]:
    """Check the dataset NAME below the folder ROOT (none for synthetic): files, decoding, and what labels hold.

    docs/datasets.md shows the layout. With --output, see with your own eyes that the labels fit the pictures.
    """
    if output is not None:
        check_output(output, suffix=".png")
    import cv2  # torch and torchvision are slow to import: bad options are answered before them

    from mtmamba.data.catalog import open_dataset
    from mtmamba.data.check import ITEMS, NYU_FOCAL_PX, examine, spread
    from mtmamba.data.page import sample_page

    rendered = name == "synthetic"
    if rendered and every:
        raise MtmError("synthetic scenes have no files to damage and no end; leave --all out")
    splits: dict[str, Any] = {}
    shown: list[Any] = []
    for index, part in enumerate(split or ("train", "val")):
        dataset = open_dataset(name, root, "train" if part == "train" else "val", length=samples if rendered else None)
        focal = 0.8 * dataset.size[1] if rendered else NYU_FOCAL_PX
        chosen = spread(len(dataset), len(dataset) if every else samples)
        facts: dict[str, Any] = {}
        with progress(unit="items") as bar:
            line = bar.add_task(part, total=len(chosen), note="")
            for sample, facts in examine(dataset, chosen, focal):  # noqa: B007 - the last facts are those of all
                if len(shown) < SCENES * (index + 1) // len(split or "ab"):
                    shown.append(sample)
                bar.advance(line)
        published = None if rendered else ITEMS[name][("train", "val").index(part)]
        splits[part] = {"items": len(dataset), "published": published, "decoded": len(chosen), **facts}
        _say_split(part, splits[part])
    if output is not None:
        with atomic_path(output) as temporary:
            if not cv2.imwrite(str(temporary), sample_page(dataset, shown)):
                raise MtmError(f"{output}: writing the picture failed; free space or choose another --output")
        say(f"Wrote {output}: {len(shown)} samples, striped where labels do not count.")
    return {
        "dataset": name,
        "root": None if root is None else str(root),
        "splits": splits,
        "picture": output and str(output),
    }


def _say_split(part: str, facts: dict[str, Any]) -> None:
    published = facts["published"]
    beside = "" if published in (None, facts["items"]) else f", where the published split has {published:,}"
    files = "" if published is None else " every file is there;"
    say(f"{part}: {facts['items']:,} items{beside};{files} {facts['decoded']:,} decoded")
    for task, values in facts["tasks"].items():
        words = [f"{values['counted']:.1f}% of pixels count"]
        if "classes" in values:
            first = ", ".join(f"{name} {share:.0f}%" for name, share in list(values["classes"].items())[:4])
            words.append(f"{len(values['classes'])} classes: {first}{', ...' if len(values['classes']) > 4 else ''}")
        if "median" in values:
            words.append(f"{values['least']:.3g} to {values['largest']:.3g}, median {values['median']:.3g}")
        say(f"  {task:<12} {'; '.join(words)}")
    if facts["axes"]:
        axes = facts["axes"]
        say(
            f"  normals are stored along ({', '.join(axes['axes'])}), as measured from the depth of {axes['pixels']:,} "
            f"pixels (mean cosine {axes['agreement']:.2f}); x right, y down, z away from the camera"
        )


main = click.Group(
    "mtm-data",
    commands={"check": check},
    context_settings=HELP,
    help="Look at a labelled dataset before training on it.",
    epilog="Example: mtm-data check nyudv2 /data/NYUDv2 --output nyudv2.png",
)
if __name__ == "__main__":
    main()
