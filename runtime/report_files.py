"""The parts of a report that files alone decide: the model, the ONNX file, the engines and what they were made from."""

from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mtmamba.errors import MtmError
from mtmamba.files import sha256
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime import sidecar
from mtmamba.runtime.onnx_model import OnnxModel
from mtmamba.runtime.page import Block, Heading, Note, Table
from mtmamba.runtime.plugin import NAMESPACE
from mtmamba.runtime.report import Part
from mtmamba.runtime.report_saved import Saved

MIB = 2**20


def model_cost(metadata: ModelMetadata) -> list[Any]:
    """The cost of every stage, the total last (`mtmamba.info`); empty without PyTorch, which counts it."""
    try:
        info = import_module("mtmamba.info")
    except ImportError:
        return []
    return list(info.model_cost(metadata.config, metadata.input_size))


def facts(onnx: OnnxModel, cost: Sequence[Any]) -> list[tuple[str, str]]:
    """The lines below the page's title."""
    metadata = onnx.metadata
    height, width = metadata.input_size
    rows = [
        ("model", f"{metadata.config.variant} for {metadata.config.dataset}, batch {metadata.batch_text}"),
        ("tasks", ", ".join(task.title for task in metadata.tasks)),
        ("input", f"{height} x {width} pixels (height x width)"),
    ]
    if cost:
        total = cost[-1]
        rows.append(("parameters", f"{total.parameters:,}"))
        rows.append(("work an image", f"{total.multiply_adds / 1e9:,.2f} G multiply-adds in matrix products and "
                     f"convolutions, {total.state_updates / 1e9:,.3f} G state updates in the scans"))  # fmt: skip
    rows.append(("checkpoint", metadata.checkpoint_sha256 or "a model in memory"))
    return [*rows, ("ONNX file", sha256(onnx.path))]


def model_part(cost: Sequence[Any]) -> Part:
    """A line a stage."""
    headers = ("stage", "map", "parameters", "FP32 MiB", "G multiply-adds", "G state updates", "papers' G FLOPs")
    rows = [
        [
            stage.name,
            f"{stage.size[0]} x {stage.size[1]}",
            f"{stage.parameters:,}",
            f"{stage.weights_mib():,.1f}",
            f"{stage.multiply_adds / 1e9:,.3f}",
            f"{stage.state_updates / 1e9:,.3f}",
            f"{stage.paper_flops / 1e9:,.2f}",
        ]
        for stage in cost
    ]
    block: Block = Note("Not counted: that needs PyTorch, which is not installed here.")
    if rows:
        block = Table(headers=headers, rows=rows, numeric=frozenset(range(1, 7)), strong=frozenset({len(rows) - 1}))
    values = {"parameters": cost[-1].parameters, "multiply_adds": cost[-1].multiply_adds} if cost else None
    return Part(name="Model", verdict=None, summary="", blocks=(block,), values=values)


def export_part(onnx: OnnxModel, reference: Path | None, saved: Saved) -> Part:
    """The ONNX file in itself: valid (`onnx_model.load_onnx` said so), runs anywhere, made from the reference."""
    proto, made_from = onnx.proto, onnx.metadata.checkpoint_sha256
    bodies = {function.name for function in proto.functions if function.domain == NAMESPACE}
    missing = sorted(set(onnx.op_counts) - bodies)
    checks = [("onnx.checker", "valid", True)]
    words = (
        f"no body of {', '.join(missing)}: it runs with plugins only" if missing else "in the file: any ONNX runtime"
    )
    checks.append(("bodies of our operators", words, not missing))
    problems = [f"lacks the body of {', '.join(missing)}"] if missing else []
    if reference is not None and made_from:
        same = sha256(reference) == made_from
        checks.append(("made from", f"{reference.name}{'' if same else ': no, from another checkpoint'}", same))
        problems += [] if same else [f"was not made from {reference.name}"]
    operators = ", ".join(f"{count} {name}" for name, count in sorted(onnx.op_counts.items())) or "none"
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), "?")
    rows = [
        ("file", f"{onnx.path.name}, {onnx.path.stat().st_size / MIB:.1f} MiB, opset {opset}"),
        ("nodes", f"{len(proto.graph.node):,}; operators of ours: {operators}"),
    ]
    blocks: list[Block] = [Table(rows=[*rows, *(check[:2] for check in checks)])]
    for export in saved.exports:
        blocks += [Heading(f"What mtm-export found ({export['file']})"), _differences(export["differences"])]
        problems += [f"differs from PyTorch in {task['task']}" for task in export["differences"] if not task["passed"]]
    summary = f"{onnx.path.name} " + (" and ".join(problems) or "is a valid file that runs in any ONNX runtime")
    values = {
        "sha256": sha256(onnx.path), "checkpoint_sha256": made_from, "nodes": len(proto.graph.node),
        "operators": onnx.op_counts, "checks": {name: passed for name, _, passed in checks},
    }  # fmt: skip
    return Part(
        name="Export", verdict="failed" if problems else "passed", summary=summary, blocks=blocks, values=values
    )


def _differences(tasks: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [
            task["task"],
            f"{task['max_abs']:.2e}",
            f"{task['rms']:.2e}",
            f"{task['tolerance']:.2e}",
            "pass" if task["passed"] else "FAIL",
        ]
        for task in tasks
    ]
    headers = ("task", "largest difference from PyTorch", "RMS", "allowed", "")
    failed = frozenset(index for index, task in enumerate(tasks) if not task["passed"])
    return Table(headers=headers, rows=rows, numeric=frozenset({1, 2, 3}), strong=failed)


def engines_made_from(model: Path) -> tuple[Path, ...]:
    """The engines beside `model` whose sidecar says that they were made from exactly this file."""
    found, wanted = [], sha256(model)
    for path in sorted(model.absolute().parent.glob("*.engine")):
        try:
            if sidecar.read(path).onnx_sha256 == wanted:
                found.append(model.parent / path.name)
        except MtmError:  # no engine of ours, or a damaged one: nobody named it
            continue
    return tuple(found)


def engines_part(onnx: OnnxModel, engines: Sequence[Path], reasons: dict[Path, str], saved: Saved) -> Part:
    """What every engine was built from, with what, for what. Raises MtmError where a sidecar cannot be read."""
    if not engines:
        return Part(name="Engines", verdict="not run", summary="no engine was named, and none here was made from it")
    blocks: list[Block] = []
    problems, values = [], []
    for path in engines:
        side = sidecar.read(path)
        wrong = [] if sha256(path) == side.engine_sha256 else ["its bytes are not those its sidecar was written for"]
        wrong += [] if side.onnx_sha256 == sha256(onnx.path) else [f"it was made from another file than {onnx.path}"]
        problems += [f"{path.name}: {text}" for text in wrong]
        build = next((b for b in saved.builds if Path(b["engine"]).name == path.name), None)
        blocks += [Heading(path.name), _engine_facts(side, onnx, wrong, reasons.get(path), build)]
        blocks += _plan(side.precision_plan)
        values.append({"engine": str(path), "precision": side.precision, "bytes": side.engine_bytes,
                       "tensorrt": f"{side.flavour} {side.tensorrt_version}", "problems": wrong,
                       "compute_capabilities": list(side.compute_capabilities)})  # fmt: skip
    names = ", ".join(path.name for path in engines)
    summary = "; ".join(problems) or f"{names}: whole, and made from {onnx.path.name}"
    idle = ", ".join(path.name for path in engines if path in reasons)
    summary += f"; not run here: {idle}" if idle else ""
    verdict: Any = "failed" if problems else "passed"
    return Part(name="Engines", verdict=verdict, summary=summary, blocks=blocks, values=values)


def _engine_facts(
    side: sidecar.Sidecar, onnx: OnnxModel, wrong: Sequence[str], reason: str | None, build: dict[str, Any] | None
) -> Table:
    scans = sum(onnx.op_counts.values())
    plugins = f"{', '.join(side.plugin_ops)}; {scans} nodes, each proved a plugin layer when it was built"
    rows = [
        ("checks", "; ".join(wrong) or "its bytes and its ONNX file are those of its sidecar"),
        ("precision", side.precision.upper()),
        ("size", f"{side.engine_bytes / MIB:.1f} MiB"),
        ("built by", f"{side.flavour} {side.tensorrt_version}"),
        ("for", "compute capability " + ", ".join(side.compute_capabilities)),
        ("plugins", f"{plugins}; sources {side.plugin_hash[:12]}" if side.plugin_ops else "none needed"),
    ]
    if build:
        layers = f"{build['layers']} as parsed, {build['plugin_layers']} of them plugins"
        rows.append(("layers", f"{layers}; built in {build['seconds']:.1f} s"))
    rows.append(("options", " ".join(side.options) or "none"))
    return Table(rows=[*rows, ("run here", f"no: {reason}" if reason else "yes")])


def _plan(plan: dict[str, Any]) -> list[Block]:
    """Which nodes stayed FP32, by operator and reason."""
    islands = [node for node in plan.get("fp32_nodes", []) if isinstance(node, dict)]
    if not islands:
        return []
    counts = Counter((str(node.get("op", "?")), str(node.get("reason", ""))) for node in islands)
    rows = [[op, str(count), reason] for (op, reason), count in counts.most_common()]
    others = "".join(
        f", {value:,} {key.replace('_', ' ')}" for key, value in plan.items() if isinstance(value, int) and value
    )
    note = Note(f"Precision plan: {len(islands)} nodes stayed FP32{others}.")
    return [note, Table(headers=("operator", "nodes in FP32", "why"), rows=rows, numeric=frozenset({1}))]
