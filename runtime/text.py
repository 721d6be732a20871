"""Text on pictures. OpenCV 5 draws a TrueType face; OpenCV 4 has only its stroke fonts, which serve as well as they
can."""

from functools import lru_cache
from threading import Lock

import cv2
import numpy as np
import numpy.typing as npt

from mtmamba.draw import Colour

_REGULAR, _BOLD = 400, 600
_FACE = cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None
_FACE_LOCK = Lock()  # nobody says that a face may draw for several threads at once


@lru_cache(maxsize=2048)
def text_mask(text: str, height_px: int, bold: bool = False) -> npt.NDArray[np.uint8]:
    """Coverage (0..255) of one line of text, [1.6 * height_px rows, its width]; the baseline is at row 1.2 *
    height_px."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # a file's name may be no text at all: OpenCV crashes there
    rows, baseline = round(1.6 * height_px), round(1.2 * height_px)
    canvas = np.zeros((rows, (len(text) + 2) * height_px * 2, 3), np.uint8)
    white = (255, 255, 255)
    if _FACE is not None:
        weight = _BOLD if bold else _REGULAR
        with _FACE_LOCK:
            end = cv2.putText(canvas, text, (0, baseline), white, _FACE, height_px, weight)[0][0]
    else:
        scale, thickness = height_px / 32, 2 if bold else 1
        cv2.putText(canvas, text, (1, baseline), cv2.FONT_HERSHEY_SIMPLEX, scale, white, thickness, cv2.LINE_AA)
        end = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)[0][0] + 2
    mask = np.ascontiguousarray(canvas[:, : max(1, int(end)), 0])
    mask.flags.writeable = False
    return mask


def text_width(text: str, height_px: int, bold: bool = False) -> int:
    """Width in pixels of one line of text."""
    return int(text_mask(text, height_px, bold).shape[1])


@lru_cache(maxsize=256)  # a long name's takes 40 KB
def _strip(text: str, height_px: int, bold: bool, colour: Colour, ground: Colour) -> npt.NDArray[np.uint8]:
    """The text in `colour` on plain `ground`: `text_mask`'s size, times three."""
    alpha = text_mask(text, height_px, bold)[:, :, None].astype(np.uint16)
    strip = (np.array(ground, np.uint16) * (255 - alpha) + np.array(colour, np.uint16) * alpha + 127) // 255
    return np.ascontiguousarray(strip, np.uint8)


def draw_text(
    picture: npt.NDArray[np.uint8],
    text: str,
    at: tuple[int, int],
    height_px: int,
    colour: Colour,
    *,
    on: Colour,
    bold: bool = False,
    right: bool = False,
) -> int:
    """Draw one line on `picture` ([H, W, 3], in place) where that is of the plain colour `on`, with its vertical middle at
    `at` = (x, y) and its left end, or its right end, at x. What falls outside the picture is cut. Returns the text's width
    in pixels."""
    strip = _strip(text, height_px, bold, colour, on)
    x = at[0] - strip.shape[1] if right else at[0]
    y = at[1] - round(0.85 * height_px)  # the middle of a capital letter is about 0.35 em above the baseline
    left, top = max(x, 0), max(y, 0)
    area = picture[top : max(y + strip.shape[0], 0), left : max(x + strip.shape[1], 0)]
    area[:] = strip[top - y :, left - x :][: area.shape[0], : area.shape[1]]
    return int(strip.shape[1])


def fit_text(text: str, height_px: int, width_px: int, bold: bool = False) -> str:
    """`text`, or as much of it as fits into `width_px`, ended by two dots."""
    if text_width(text, height_px, bold) <= width_px:
        return text
    while text and text_width(text + "..", height_px, bold) > width_px:
        text = text[:-1]
    return text + ".." if text else ""
