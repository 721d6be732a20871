"""Drawing: facts about the pictures, not their looks."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from mtmamba import draw
from mtmamba.draw import DepthScale
from mtmamba.runtime import mosaic, text
from mtmamba.runtime.mosaic import Facts, Mosaic, plan_layout, ticks
from mtmamba.runtime.sheet import Sheet, Sheets
from mtmamba.runtime.sources import Frame
from mtmamba.tasks import dataset

TASKS = {task.name: task for task in dataset("synthetic").tasks}
SEMSEG = TASKS["semseg"]
FACTS = Facts(title="mtmamba", lines=(("model", "toy.onnx"),))


def raw_of(height: int = 48, width: int = 64) -> dict[str, np.ndarray]:
    """Random raw outputs of all six tasks."""
    rng = np.random.default_rng(5)
    return {name: rng.normal(size=(t.channels, height, width)).astype(np.float32) for name, t in TASKS.items()}


def sheet_of(image: np.ndarray, name: str, note: str = "") -> Sheet:
    """Of `raw_of`."""
    made = Sheets(tuple(TASKS.values())).make(Frame(index=0, name="a", image=image, source=name), raw_of())
    return replace(made, note=note)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text drawn on a mosaic, in order."""
    texts: list[str] = []

    def record(picture: np.ndarray, line: str, *args: object, **options: object) -> int:
        texts.append(line)
        return text.draw_text(picture, line, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(mosaic, "draw_text", record)
    return texts


def test_labels_show_their_palette_colours(photo: np.ndarray) -> None:
    labels = np.zeros(photo.shape[:2], np.uint8)
    labels[:, 45:] = 21  # ceiling
    picture, _ = draw.paint_labels(np.zeros_like(photo), labels, SEMSEG)
    for column, label in ((10, 0), (80, 21)):
        expected = np.array(SEMSEG.palette[label][::-1]) * 0.65
        np.testing.assert_allclose(picture[30, column], expected, atol=1)
    assert picture[30, 45].min() > 100  # the light line between them


def test_background_shows_the_picture(photo: np.ndarray) -> None:
    labels = np.zeros(photo.shape[:2], np.uint8)
    picture, legend = draw.paint_labels(photo, labels, TASKS["human_parts"])
    np.testing.assert_allclose(picture, photo * 0.45, atol=1)
    assert [chip.name for chip in legend.chips] == ["background"]


def test_the_legend_lists_the_classes_present_by_area() -> None:
    labels = np.full((10, 10), SEMSEG.classes.index("floor"), np.uint8)
    labels[:3] = SEMSEG.classes.index("wall")
    labels[9, 9] = SEMSEG.classes.index("person")
    chips = draw.class_chips(labels, SEMSEG)
    assert [(chip.name, chip.share) for chip in chips] == [("floor", 0.69), ("wall", 0.3), ("person", 0.01)]
    assert chips[0].colour == SEMSEG.palette[SEMSEG.classes.index("floor")][::-1]


def test_depth_colours_follow_the_scale_and_near_is_warm() -> None:
    depth = np.linspace(1, 5, 100, dtype=np.float32)[None].repeat(4, 0)
    picture, legend = draw.paint_depth(depth, 1.0, 5.0, "m")
    assert legend.ramp is not None
    matches = [int(np.abs(legend.ramp.colours.astype(int) - pixel).sum(1).argmin()) for pixel in picture[0].astype(int)]
    assert matches == sorted(matches) and matches[0] == 0 and matches[-1] == 255
    assert picture[0, 5, 2] > picture[0, 5, 0] and picture[0, 90, 0] > picture[0, 90, 2]  # red near, blue far
    clipped, _ = draw.paint_depth(np.float32([[-3, 1, 5, 99]]), 1.0, 5.0, "m")
    assert (clipped[0, 0] == clipped[0, 1]).all() and (clipped[0, 2] == clipped[0, 3]).all()


def test_disparity_is_drawn_the_other_way_round() -> None:
    task = dataset("cityscapes").tasks[1]
    disparity = np.linspace(0, 60, 100, dtype=np.float32)[None].repeat(8, 0)
    picture, _ = draw.paint(np.zeros((8, 100, 3), np.uint8), disparity, task, DepthScale())
    assert picture[0, 90, 2] > picture[0, 90, 0] and picture[0, 10, 0] > picture[0, 10, 2]


def test_normals_are_coded_as_colours() -> None:
    normals = np.float32([[[1, 0, 0], [0, -1, 0], [0, 0, 1]]])
    rgb = draw.paint_normals(normals)[0][..., ::-1]
    np.testing.assert_allclose(rgb[0], [[255, 127, 127], [127, 0, 127], [127, 127, 255]], atol=1)


def test_boundaries_and_saliency_leave_the_rest_a_dim_picture(photo: np.ndarray) -> None:
    probability = np.zeros(photo.shape[:2], np.float32)
    probability[30] = 1
    edges, _ = draw.paint_boundary(photo, probability)
    assert (edges[30] == draw.LINE_COLOUR).all()
    np.testing.assert_allclose(edges[:30], photo[:30] * 0.35, atol=1)
    heat, _ = draw.paint_saliency(photo, probability)
    assert np.abs(heat[30].astype(int) - heat[10]).max() > 60
    assert (heat[10].max(-1) == heat[10].min(-1)).all()  # grey


def test_mixed_colours_are_rounded_once(photo: np.ndarray) -> None:
    probability = np.random.default_rng(2).random(photo.shape[:2], np.float32)
    dim = cv2.convertScaleAbs(photo, alpha=0.35).astype(np.float32)
    expected = np.rint(dim + (np.float32(draw.LINE_COLOUR) - dim) * probability[:, :, None])
    assert (draw.paint_boundary(photo, probability)[0] == expected).all()


def test_values_that_are_no_numbers_are_drawn_as_zero(photo: np.ndarray) -> None:
    probability = np.full(photo.shape[:2], 0.5, np.float32)
    probability[10:20] = np.nan
    picture, _ = draw.paint(photo, probability, TASKS["edge"], DepthScale())
    assert (picture[10:20] == cv2.convertScaleAbs(photo, alpha=0.35)[10:20]).all()


def test_the_depth_range_moves_slowly() -> None:
    scale = DepthScale(momentum=0.9)
    first = scale.update(np.linspace(0, 10, 10000, dtype=np.float32).reshape(100, 100))
    assert first == pytest.approx((0.2, 9.8), abs=0.2)
    second = scale.update(np.full((100, 100), 30, np.float32))
    assert second[1] == pytest.approx(0.9 * first[1] + 0.1 * 30, abs=1e-3)
    for _ in range(200):
        last = scale.update(np.full((100, 100), 30, np.float32))
    assert last[0] == pytest.approx(30, abs=0.01) and last[0] < last[1]
    assert np.isfinite(DepthScale().update(np.full((8, 8), np.nan, np.float32))).all()


def test_pictures_of_a_folder_do_not_share_a_depth_range() -> None:
    scale = DepthScale(momentum=0.0)
    scale.update(np.full((8, 8), 3, np.float32))
    assert scale.update(np.full((8, 8), 50, np.float32))[0] == pytest.approx(50)


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0.0, 1.0, 6, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (1.3, 9.1, 5, ["2", "4", "6", "8"]),
        (0.52, 0.58, 4, ["0.52", "0.54", "0.56", "0.58"]),
        (100.0, 900.0, 5, ["200", "400", "600", "800"]),
    ],
)
def test_ticks_are_round_and_in_range(low: float, high: float, most: int, expected: list[str]) -> None:
    found = ticks(low, high, most)
    assert [label for _, label in found] == expected
    assert [value for value, _ in found] == sorted(value for value, _ in found)


def test_a_range_of_nearly_nothing_still_has_a_scale() -> None:
    low, high = DepthScale().update(np.full((8, 8), 7, np.float32))
    assert 1 <= len(ticks(low, high, 5)) <= 5


@pytest.mark.parametrize("size", [(640, 272), (640, 480), (1920, 1080), (320, 240), (270, 480), (33, 17), (4000, 100)])
@pytest.mark.parametrize("tiles", [2, 5, 7])
def test_layouts_are_even_and_hold_every_tile(size: tuple[int, int], tiles: int) -> None:
    layout = plan_layout(size, tiles)
    assert layout.size[0] % 2 == 0 and layout.size[1] % 2 == 0
    assert layout.columns * layout.rows >= tiles > layout.columns * (layout.rows - 1)
    x, y = layout.corner(tiles - 1)
    assert x + layout.tile[0] <= layout.size[0] and y + layout.tile[1] <= layout.size[1]
    assert layout.picture[0] <= layout.tile[0] and layout.picture[0] <= 624
    if layout.picture[1] > 50:
        assert layout.picture[0] / layout.picture[1] == pytest.approx(size[0] / size[1], rel=0.02)


def test_a_page_shows_every_task_and_names_the_source(photo: np.ndarray, written: list[str]) -> None:
    page = Mosaic(tuple(TASKS.values()), FACTS).draw(sheet_of(photo, "bikes.mp4", "frame 3 of 9"))
    layout = plan_layout((90, 60), 7)
    assert page.shape == (layout.size[1], layout.size[0], 3) and page.dtype == np.uint8
    for title in ("Source", *(task.title.capitalize() for task in TASKS.values())):
        assert title in written
    assert {"bikes.mp4", "frame 3 of 9", "m", "90 x 60", "toy.onnx"} <= set(written)
    for cell in range(7):
        x, y = layout.corner(cell)
        tile = page[y + mosaic.HEADER : y + mosaic.HEADER + layout.picture[1], x : x + layout.picture[0]]
        assert tile.std() > 5, f"tile {cell} is empty"


def test_the_legend_says_how_many_classes_found_no_room(photo: np.ndarray, written: list[str]) -> None:
    Mosaic((SEMSEG,), FACTS, picture_width=300).draw(sheet_of(photo, "a.png"))
    more = [line for line in written if line.endswith(" more")]
    named = [line for line in written if line in SEMSEG.classes]
    assert len(more) == 1
    assert len(named) >= 3 and len(named) + int(more[0].strip("+ more")) == 40  # all 40 are present in the noise


def test_a_caption_stays_in_its_tile(photo: np.ndarray) -> None:
    """A long video in narrow tiles."""
    tasks = (TASKS["depth"], TASKS["normals"])
    pages = [
        Mosaic(tasks, FACTS, picture_width=200).draw(sheet_of(photo, "a.mp4", note))
        for note in ("", "frame 123456 of 360000    82:25.96")
    ]
    layout = plan_layout((90, 60), 3, 200)
    changed = np.argwhere((pages[0] != pages[1]).any(axis=2))
    (x, y), (width, height) = layout.corner(0), layout.tile
    assert changed.size and (changed.min(axis=0) >= (y, x)).all()
    assert (changed.max(axis=0) < (y + height, x + width)).all()


def test_frames_of_other_sizes_may_follow(photo: np.ndarray) -> None:
    page = Mosaic(tuple(TASKS.values()), FACTS)
    wide, high = (page.draw(sheet_of(image, "a")) for image in (photo, photo.transpose(1, 0, 2)))
    assert wide.shape != high.shape
    assert (page.draw(sheet_of(photo, "a")) == wide).all()


def test_text_is_cut_to_the_picture_and_to_its_room() -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    for at in ((-30, 10), (50, 10), (10, -5), (10, 19)):
        text.draw_text(picture, "segmentation", at, 15, (255, 255, 255), on=(0, 0, 0))
    assert picture.any()
    short = text.fit_text("a very long name of a file.mp4", 15, 100)
    assert short.endswith("..") and text.text_width(short, 15) <= 100
    assert text.fit_text("short", 15, 200) == "short"


def test_opencv_4_has_other_letters_and_the_same_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_FACE", None)
    text.text_mask.cache_clear()
    mask = text.text_mask("wall 12%", 15)
    assert mask.any() and not mask[:, -1].any() and mask.shape[0] == 24 and 40 < mask.shape[1] < 120
    text.text_mask.cache_clear()
