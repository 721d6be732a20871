"""Reading datasets from disk: what is missing said at once, and what does not decode said by name.

Files come from other people: pictures are decoded by Pillow, `.mat` by SciPy (MATLAB 5, no code in it is run), `.npy`
with pickle refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtmamba.errors import MtmError
from mtmamba.tasks import IGNORE_LABEL

Array = np.ndarray[Any, Any]
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files that must be there, one an item. folders: below the root; each file is looked for in the first, then in
    the next. names: below the folder. pattern: how they are named, for the message."""

    folders: tuple[str, ...]
    names: tuple[str, ...]
    pattern: str

    def paths(self, root: Path) -> list[Path | None]:
        """Where each file is; None where it is not. Folders are listed once instead of asking for every file."""
        listed: dict[Path, set[str]] = {}

        def there(path: Path) -> bool:
            if path.parent not in listed:
                folder = path.parent
                listed[folder] = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
            return path.name in listed[path.parent]

        candidates = ([root / folder / name for folder in self.folders] for name in self.names)
        return [next((path for path in paths if there(path)), None) for paths in candidates]

    def missing(self, root: Path, found: Sequence[Path | None]) -> str:
        """What is wrong, or nothing."""
        where = " or ".join(self.folders)
        if not any((root / folder).is_dir() for folder in self.folders):
            return f"the folder {where} ({self.pattern})"
        absent = [name for name, path in zip(self.names, found, strict=True) if path is None]
        if not absent:
            return ""
        shown = ", ".join(absent[:SHOWN]) + (", ..." if len(absent) > SHOWN else "")
        return f"{len(absent)} of {len(self.names)} files of {where} ({shown})"


def find_files(root: Path, title: str, wanted: dict[str, Files]) -> dict[str, list[Path]]:
    """The paths of each kind of file, in the order of its names. Raises one MtmError that lists all that is missing
    below `root`; title: what was to be opened, such as "nyudv2 train"."""
    found = {kind: files.paths(root) for kind, files in wanted.items()}
    gaps = [gap for kind, files in wanted.items() if (gap := files.missing(root, found[kind]))]
    if gaps:
        layout = ", ".join(f"{' or '.join(f.folders)}/{f.pattern}" for f in wanted.values())
        raise MtmError(
            f"{root}: expected {title} with {layout}; missing: {'; '.join(gaps)}; "
            "docs/datasets.md shows the layout and where to get it"
        )
    return {kind: [path for path in paths if path is not None] for kind, paths in found.items()}


def read_ids(root: Path, list_file: str, title: str) -> list[str]:
    """The item IDs in `list_file`, one a line. Raises MtmError where root or file is missing, or holds no usable ID."""
    if not root.is_dir():
        raise MtmError(f"{root}: expected the folder of {title}, found no folder there; check the path")
    path = root / list_file
    if not path.is_file():
        raise MtmError(
            f"{root}: expected {title} with the list of its items in {list_file}, found none; name the folder that "
            "holds it (docs/datasets.md shows the layout)"
        )
    try:
        ids = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise MtmError(
            f"{path}: expected a list of item IDs, found no readable text ({error}); copy it again"
        ) from error
    strange = [name for name in ids if Path(name).name != name]
    if not ids or strange:
        raise MtmError(
            f"{path}: expected item IDs, one a line, found {repr(strange[0]) if strange else 'an empty file'}; "
            "copy it again"
        )
    return ids


def damaged(path: Path, expected: str, found: object) -> MtmError:
    reason = " ".join(str(found).split())[:200]
    return MtmError(f"{path}: expected {expected}, found {reason}; copy or download it again")


def read_pixels(path: Path, mode: str | None = None) -> Array:
    """A picture file's stored values, [H, W] or [H, W, C]: class indices of a palette picture, 16 bits where there are
    16. mode: convert to this one of Pillow's modes first ("RGB"). Raises MtmError where it does not decode."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode) if mode else picture)
    except FileNotFoundError:
        raise damaged(path, "a picture", "nothing there") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        Image.DecompressionBombError,
    ) as error:  # all that Pillow raises
        raise damaged(path, "a picture", error) from error


def read_picture(path: Path) -> Tensor:
    """[3, H, W] uint8 RGB."""
    return torch.from_numpy(read_pixels(path, "RGB").copy()).permute(2, 0, 1)


def read_plane(path: Path, size: Sequence[int]) -> Array:
    """The stored values [H, W] of a one-channel picture of this (height, width)."""
    return fitting(read_pixels(path), path, size, ())


def fitting(values: Array, path: Path, size: Sequence[int], channels: tuple[int, ...]) -> Array:
    """The values, if they are [height, width, *channels]; else MtmError."""
    wanted = (*size, *channels)
    if values.shape != wanted:
        raise damaged(path, f"values of shape {wanted}, as its picture has", f"{values.shape}")
    return values


def read_npy(path: Path) -> Array:
    """An array of numbers from a `.npy` file."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise damaged(path, "an array of numbers (.npy)", error) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise damaged(path, "an array of numbers (.npy)", f"{type(values).__name__} of {getattr(values, 'dtype', '?')}")
    return values


def read_mat(path: Path, variable: str) -> Any:
    """One variable of a MATLAB 5 file; structs as dicts, cells and arrays of structs as lists."""
    from scipy.io import loadmat  # slow to import, and one dataset needs it

    try:
        content = loadmat(path, simplify_cells=True, variable_names=[variable])
    except Exception as error:  # SciPy raises whatever its parser trips over
        raise damaged(path, "a MATLAB 5 file", f"{type(error).__name__}: {error}") from error
    if variable not in content:
        raise damaged(path, f"a MATLAB file with the variable {variable}", "none")
    return content[variable]


def classes_of(values: Array, path: Path, count: int) -> Tensor:
    """[H, W] uint8 class indices, checked to be below `count` or 255."""
    wrong = values[(values >= count) & (values != IGNORE_LABEL)]
    if wrong.size or values.dtype.kind not in "iu" or values.min(initial=0) < 0:
        found = wrong.flat[0] if wrong.size else values.dtype
        raise damaged(path, f"class numbers below {count}, or {IGNORE_LABEL}", found)
    return torch.from_numpy(values.astype(np.uint8))


def unit_normals(values: Array, valid: Array | None = None) -> Tensor:
    """[3, H, W] float32 unit vectors of bytes [H, W, 3] that stand for 2 * v / 255 - 1.

    Where `valid` [H, W] says no, and where the stored vector's length is not near 1 (0.5 to 1.5), which grey and black
    pixels mark, the zero vector: these do not count.
    """
    vectors = values.astype(np.float32) * (2 / 255) - 1
    length = np.sqrt(np.einsum("hwc,hwc->hw", vectors, vectors))
    good = (length > 0.5) & (length < 1.5)
    if valid is not None:
        good &= valid
    vectors *= np.divide(good, length, out=np.zeros_like(length), where=good)[:, :, None]
    return torch.from_numpy(np.ascontiguousarray(vectors.transpose(2, 0, 1)))
