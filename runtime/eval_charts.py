"""The pictures of an evaluation's page: confusion matrix, bars of IoU, the curve of boundaries, and exhibits."""

import numpy as np

from mtmamba.data.labels import as_prediction, valid_pixels
from mtmamba.draw import DepthScale, Picture, class_chips, paint, paint_depth, palette_bgr
from mtmamba.metrics import BoundaryMeter, LabelMeter
from mtmamba.postprocess import Prediction
from mtmamba.runtime.evaluate import Exhibit, Label
from mtmamba.runtime.page import Figure, Figures, Swatches, new_plot, picture_uri, plot_uri
from mtmamba.runtime.preprocess import resize_image
from mtmamba.tasks import Task

BLUE = "#3b6fb6"
EXHIBIT_WIDTH = 360
DOES_NOT_COUNT = 128  # the grey of a label's pixels that are ignored


def confusion_figure(meter: LabelMeter) -> Figure:
    """Row by row, which share of a class's pixels was taken for which class; classes without a label are left out."""
    confusion, classes = meter.confusion, meter.task.classes
    kept = np.flatnonzero(confusion.sum(1))
    share = 100 * confusion[kept] / confusion[kept].sum(1, keepdims=True)
    side = max(3.5, 0.24 * len(classes))
    plot = new_plot(side + 2.2, max(2.5, 0.24 * len(kept) + 1.8))
    axes = plot.add_subplot()
    shown = axes.imshow(share, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
    axes.set_yticks(range(len(kept)), [classes[index] for index in kept], fontsize=8)
    axes.set(xlabel="predicted", ylabel="label")
    plot.colorbar(shown, ax=axes, label="percent of the label's pixels", fraction=0.04, pad=0.02)
    if len(classes) <= 8:
        for (row, column), value in np.ndenumerate(share):
            axes.text(
                column, row, f"{value:.0f}", ha="center", va="center", color="w" if value < 60 else "k", fontsize=8
            )
    return Figure(uri=plot_uri(plot), caption=f"{meter.task.title}: confusion")


def iou_figure(meter: LabelMeter) -> Figure:
    """IoU of every class, the best above, in the class's own colour."""
    iou, task = meter.class_iou(), meter.task
    order = np.argsort(np.nan_to_num(iou, nan=-1), kind="stable")
    plot = new_plot(7, max(2.0, 0.21 * len(order) + 0.8))
    axes = plot.add_subplot()
    colours = [np.array(task.palette[index]) / 255 for index in order]
    bars = axes.barh(range(len(order)), np.nan_to_num(iou[order]), color=colours, edgecolor="#0005", linewidth=0.5)
    texts = ["nowhere" if np.isnan(value) else f"{value:.1f}" for value in iou[order]]
    axes.bar_label(bars, texts, fontsize=8, padding=3)
    axes.set_yticks(range(len(order)), [task.classes[index] for index in order], fontsize=8)
    axes.set(xlabel="IoU, percent", xlim=(0, 108), ylim=(-0.7, len(order) - 0.3))
    axes.spines[["top", "right"]].set_visible(False)
    return Figure(uri=plot_uri(plot), caption=f"{task.title}: IoU by class")


def curve_figure(meter: BoundaryMeter) -> Figure:
    """Precision over recall of the set, lines of equal F behind, the best point marked."""
    recall, precision = meter.curve()
    plot = new_plot(5.2, 4.4)
    axes = plot.add_subplot()
    r, p = np.meshgrid(np.linspace(0.01, 1, 100), np.linspace(0.01, 1, 100))
    lines = axes.contour(r, p, 2 * r * p / (r + p), levels=np.arange(0.1, 1, 0.1), colors="#ccc", linewidths=0.8)
    axes.clabel(lines, fontsize=7, fmt="F %.1f")
    axes.plot(recall, precision, color=BLUE, marker=".", markersize=3)
    if recall.size:
        best = int(np.argmax(2 * recall * precision / np.maximum(recall + precision, 1e-12)))
        axes.plot(recall[best], precision[best], "o", color=BLUE)
        axes.annotate(
            f"odsF {meter.result()['odsF']:.1f}", (recall[best], precision[best]),
            xytext=(6, 6), textcoords="offset points",
        )  # fmt: skip
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    return Figure(uri=plot_uri(plot), caption="boundaries: precision over recall, matched with tolerance")


def exhibit_figures(task: Task, exhibit: Exhibit, figure: str) -> Figures:
    """Input, prediction and label of one picture, all in the same colours."""
    prediction, label = painted_pair(task, exhibit.picture, exhibit.prediction, exhibit.label)
    captions = (f"{exhibit.name}: {figure} {exhibit.score:.4g}", "prediction", "label" + _range(task, exhibit.label))
    pictures = (exhibit.picture, prediction, label)
    return Figures([_exhibit(*pair) for pair in zip(pictures, captions, strict=True)])


def _range(task: Task, label: Label) -> str:
    """The depths between which the colours run, as a caption's end."""
    valid = valid_pixels(task.kind, label[None])[0]
    if task.kind != "depth" or not valid.any():
        return ""
    low, high = DepthScale().update(label[0][valid][:, None])
    return f", {low:.3g} to {high:.3g} {task.unit}"


def _exhibit(picture: Picture, caption: str) -> Figure:
    height, width = picture.shape[:2]
    size = (max(1, round(height * EXHIBIT_WIDTH / width)), EXHIBIT_WIDTH)
    smaller = resize_image(picture, size) if width > EXHIBIT_WIDTH else picture
    return Figure(uri=picture_uri(smaller), caption=caption, width=EXHIBIT_WIDTH)


def painted_pair(task: Task, picture: Picture, prediction: Prediction, label: Label) -> tuple[Picture, Picture]:
    """The pictures of a prediction and of its label [...] (`mtmamba.data.labels`), drawn alike; the label's pixels that
    do not count are grey. Depth has the label's range in both."""
    truth, valid = as_prediction(task.kind, label)
    if task.kind == "depth":
        low, high = DepthScale().update(truth[valid][:, None]) if valid.any() else (0.0, 1.0)
        pair = [
            paint_depth(np.asarray(depth, np.float32), low, high, task.unit, near_is_high=task.unit == "px")[0]
            for depth in (prediction, truth)
        ]
    else:
        pair = [paint(picture, values, task, DepthScale())[0] for values in (prediction, truth)]
    pair[1][~valid] = DOES_NOT_COUNT
    return pair[0], pair[1]


def legend(task: Task, exhibits: list[Exhibit]) -> Swatches | None:
    """The classes that these labels and predictions hold; None for tasks without classes."""
    if not task.classes:
        return None
    values = np.concatenate([v.ravel() for e in exhibits for v in (e.prediction, e.label)]).astype(np.uint8)
    names = {chip.name for chip in class_chips(values[:, None], task)}
    colours = palette_bgr(task)
    return Swatches(
        [(n, (int(c[0]), int(c[1]), int(c[2]))) for n, c in zip(task.classes, colours, strict=False) if n in names]
    )
