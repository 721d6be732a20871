"""Where things that are made once and used again live."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtmamba.errors import MtmError

CACHE_VARIABLE = "MTMAMBA_CACHE"


def cache_dir(*parts: str) -> Path:
    """The folder `parts` in the cache, made if need be: $MTMAMBA_CACHE, else $XDG_CACHE_HOME/mtmamba, else
    ~/.cache/mtmamba. Raises MtmError where it cannot be made."""
    chosen = os.environ.get(CACHE_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = (Path(chosen) if chosen else Path(base) / "mtmamba").joinpath(*parts).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    return folder


@contextmanager
def work_dir(folder: Path, prefix: str = ".work.") -> Iterator[Path]:
    """A new folder inside a cache folder, gone after the block: things are made in it and renamed into place.

    Raises MtmError where the cache cannot be written.
    """
    try:
        made = Path(tempfile.mkdtemp(dir=folder, prefix=prefix))
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _unusable(folder: Path, error: OSError) -> MtmError:
    return MtmError(
        f"{folder}: expected a cache folder that can be written, found: {error.strerror}; set {CACHE_VARIABLE} to one"
    )
