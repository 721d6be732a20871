"""Which nodes must stay in a higher precision for the predictions to hold: delta debugging (Zeller and Hildebrandt, IEEE
TSE 2002) over the model's blocks, then over the nodes of the blocks it found.

Every trial rewrites the graph with one set of nodes kept, emulates its roundings on the CPU and judges the predictions.
The answer is 1-minimal: with any one of its nodes in low precision the predictions fail. There may be a smaller set that
delta debugging did not meet, as where two nodes cure each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import onnx

from mtmamba.calib.calibration import Calibration
from mtmamba.calib.plan import QUANTISED, PrecisionPlan
from mtmamba.errors import MtmError
from mtmamba.export.graph import MOVES, block_of, blocks_of, fold_weights
from mtmamba.export.precision import to_precision
from mtmamba.export.quantize import quantisable
from mtmamba.runtime.emulation import Array, Emulation

Outputs = dict[str, Array]
Judge = Callable[[Sequence[Outputs], Sequence[Outputs]], bool]
"""(the FP32 model's predictions, the candidate's), an entry an image batch {task: [B, C, h, w]} -> do they hold."""
OnProgress = Callable[[str, int, int], None]
"""(what is searched, trials so far, candidates left)."""


@dataclass(frozen=True, kw_only=True)
class Bisection:
    """nodes: that must be kept, in the graph's order; blocks: theirs. kept: node -> the reason, for a plan. trials: how
    often the model was judged."""

    precision: str
    nodes: tuple[str, ...]
    blocks: tuple[str, ...]
    kept: dict[str, str] = field(default_factory=dict)
    trials: int = 0

    def into(self, calibration: Calibration) -> Calibration:
        """`calibration` with these nodes in its plan of this precision, in place of those an earlier search found."""
        before = calibration.kept.get(self.precision, {})
        others = {node: reason for node, reason in before.items() if not reason.startswith(_REASON)}
        return replace(calibration, kept={**calibration.kept, self.precision: {**self.kept, **others}})


_REASON = "found by bisection"


def bisect(
    model: onnx.ModelProto,
    precision: str,
    images: Sequence[Array],
    judge: Judge,
    *,
    calibration: Calibration | None = None,
    on_progress: OnProgress | None = None,
) -> Bisection:
    """The nodes of the FP32 `model` to keep (FP32 for fp16 and bf16, 16 bits for int8 and fp8) so that `judge` accepts
    the predictions on `images`, batches [B, 3, H, W].

    calibration: its plan holds from the start; needed for int8 and fp8. No node is found where the predictions hold
    anyway. Raises MtmError where they fail even with every candidate kept.
    """
    search = _Search(model, precision, images, judge, calibration, on_progress or (lambda *_: None))
    if search.holds(frozenset()):
        return Bisection(precision=precision, nodes=(), blocks=(), trials=search.trials)
    if not search.holds(frozenset(search.candidates)):
        higher = "16 bits" if precision in QUANTISED else "FP32"
        raise MtmError(
            f"the predictions are beyond the tolerance even with every candidate node in {higher}; bisect "
            f"{'fp16' if precision in QUANTISED else 'with a wider --tolerance'} first"
        )
    blocks = blocks_of(search.candidates)
    search.what = "blocks"
    found = _minimal(
        list(blocks), lambda kept: search.holds(frozenset(n for b in kept for n in blocks[b])), search.tell
    )
    search.what = "nodes"
    nodes = _minimal([n for b in found for n in blocks[b]], lambda kept: search.holds(frozenset(kept)), search.tell)
    kept = {node: f"{_REASON}: without it in {block_of(node)} the predictions leave the tolerance" for node in nodes}
    return Bisection(
        precision=precision,
        nodes=tuple(nodes),
        blocks=tuple(blocks_of(nodes)),
        kept=kept,
        trials=search.trials,
    )


def candidates_of(model: onnx.ModelProto, precision: str, plan: PrecisionPlan) -> list[str]:
    """The nodes of an FP32 model that `plan` lets go low and that compute something, in the graph's order."""
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    fold_weights(folded)
    sites = quantisable(folded) if precision in QUANTISED else None
    return [
        node.name
        for node in folded.graph.node
        if (node.name in sites if sites is not None else node.op_type not in (*MOVES, "Constant"))
        and not plan.reason(node.name, node.op_type)
        and not (sites is not None and plan.reason_16_bits(node.name))
    ]


def keeping(plan: PrecisionPlan, precision: str, nodes: Sequence[str] | frozenset[str], reason: str) -> PrecisionPlan:
    """`plan` with these nodes kept in the precision above `precision` too."""
    more = dict.fromkeys(nodes, reason)
    if precision in QUANTISED:
        return replace(plan, not_quantised={**plan.not_quantised, **more})
    return replace(plan, fp32_nodes={**plan.fp32_nodes, **more})


class _Search:
    def __init__(
        self,
        model: onnx.ModelProto,
        precision: str,
        images: Sequence[Array],
        judge: Judge,
        calibration: Calibration | None,
        on_progress: OnProgress,
    ) -> None:
        self.model, self.precision, self.images, self.judge = model, precision, images, judge
        self.calibration, self.on_progress = calibration, on_progress
        self.plan = calibration.plan(precision) if calibration else PrecisionPlan()
        self.candidates = candidates_of(model, precision, self.plan)
        self.reference = run_all(Emulation(model), images)
        self.what, self.trials = "whole model", 0
        self.known: dict[frozenset[str], bool] = {}

    def holds(self, kept: frozenset[str]) -> bool:
        if kept not in self.known:
            self.trials += 1
            plan = keeping(self.plan, self.precision, kept, "on trial")
            low, _ = to_precision(self.model, self.precision, self.calibration, plan=plan)
            self.known[kept] = self.judge(self.reference, run_all(Emulation(low), self.images))
        return self.known[kept]

    def tell(self, left: int) -> None:
        self.on_progress(self.what, self.trials, left)


def run_all(emulation: Emulation, images: Sequence[Array]) -> list[Outputs]:
    """Every batch's predictions."""
    return [emulation.run(batch) for batch in images]


def _minimal(items: list[str], holds: Callable[[list[str]], bool], tell: Callable[[int], None]) -> list[str]:
    """A 1-minimal sublist of `items` for which `holds`; all of them hold."""
    parts = 2
    while len(items) > 1:
        tell(len(items))
        size = -(-len(items) // parts)
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        smaller = next((chunk for chunk in chunks if holds(chunk)), None)
        if smaller is not None:
            items, parts = smaller, 2
            continue
        rest = ([item for item in items if item not in chunk] for chunk in chunks) if len(chunks) > 2 else iter(())
        smaller = next((left for left in rest if holds(left)), None)
        if smaller is not None:
            items, parts = smaller, max(parts - 1, 2)
        elif size == 1:
            break
        else:
            parts = min(len(items), 2 * parts)
    tell(len(items))
    return items
