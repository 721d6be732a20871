"""mtm-serve-repo: a model repository for NVIDIA's Triton Inference Server."""

from pathlib import Path
from typing import Any

import click

from mtmamba.console import command, say
from mtmamba.files import only_candidate
from mtmamba.runtime.triton import write_repository

_PATH = click.Path(path_type=Path)


@command(epilog="Example: mtm-serve-repo best.onnx --output triton")
@click.argument("model", required=False, type=_PATH)
@click.option("-o", "--output", type=_PATH, default=Path("triton"), help="The folder to write; new or empty.")
@click.option("--name", default="mtmamba", help="What clients call the model.")
@click.option(
    "--device", type=click.Choice(["gpu", "cpu"]), default="gpu", help="Where ONNX Runtime runs in the server."
)
@click.option("--instances", type=click.IntRange(1, 64), default=1, help="Copies of the model side by side.")
@click.option("--plugin", type=_PATH, help="With an engine: the plugin library it was built with.")
def main(
    model: Path | None, output: Path, name: str, device: str, instances: int, plugin: Path | None
) -> dict[str, Any]:
    """Write a Triton model repository for MODEL, an .onnx file or a TensorRT .engine (default: the one .onnx here).

    The server then takes pictures of any size and gives labels, depth, normals and probabilities: resizing and
    postprocessing are models of the repository too, chained by an ensemble. Nothing is needed in the server but Triton.
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise click.BadParameter("expected letters, digits, - and _", param_hint="--name")
    if model is None:
        model = only_candidate(("*.onnx",), "ONNX model", "mtm-serve-repo NAME.onnx", "mtm-export --ckpt CHECKPOINT")
        say(f"using {model.name}")
    made = write_repository(model, output, name, on_gpu=device == "gpu", instances=instances, plugin=plugin)
    say(f"wrote {made.folder}: models {', '.join(made.models)}")
    say(f"{made.folder / 'README.md'} has the command that starts the server")
    return {
        "folder": str(made.folder),
        "models": list(made.models),
        "plugin": None if made.plugin is None else str(made.plugin),
    }


if __name__ == "__main__":
    main()
