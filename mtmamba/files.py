"""Files: atomic writing, hashes, and finding what the command before left in the working folder."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtmamba.errors import MtmError

_UMASK = os.umask(0o077)  # there is no asking for it but by setting it, which no other thread may see
os.umask(_UMASK)


def existing_file(path: Path, what: str) -> Path:
    """Return `path` if it is a readable, non-empty file; raise MtmError naming `what` (such as "checkpoint") if not."""
    path = Path(path)
    if path.is_dir():
        raise MtmError(f"{path}: expected a {what} file, found a folder; name the file itself")
    if not path.exists():
        raise MtmError(f"{path}: expected a {what} file, found nothing there; check the path")
    if not os.access(path, os.R_OK):
        raise MtmError(f"{path}: this {what} file cannot be read by you; check its permissions (ls -l {path})")
    if not path.is_file():
        raise MtmError(f"{path}: expected a {what} file, found something that is no regular file; check the path")
    if path.stat().st_size == 0:
        raise MtmError(f"{path}: expected a {what}, found an empty file; make or copy it again")
    return path


def cannot_write(target: Path, error: OSError) -> MtmError:
    """What to raise where no file can be made at `target`."""
    return MtmError(
        f"{target}: cannot write into {target.parent} ({error.strerror}); choose another output with --output"
    )


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` if the block succeeds, else delete it.

    The temporary name keeps the target's suffix, since some writers choose their format by it. Readers therefore see the
    old file or the whole new one, never a part. Raises MtmError where the folder cannot be made or written.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}.", suffix=f".part{target.suffix}"
        )
        os.close(descriptor)
    except OSError as error:
        raise cannot_write(target, error) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MtmError(
            f"{target}: writing failed ({reason}); nothing was changed there; free space or choose another "
            "output with --output"
        ) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def check_output(target: Path, *, suffix: str, inputs: tuple[Path, ...] = ()) -> None:
    """Raise MtmError now, not after the work, where `target` cannot be written: a folder, a name that does not end in
    `suffix`, one of the `inputs` themselves, or a place where no file can be made."""
    if target.is_dir():
        raise MtmError(
            f"{target}: expected the name of a {suffix} file, found a folder; choose another output with --output"
        )
    if not target.name.endswith(suffix):
        raise MtmError(f"{target}: expected an output name ending in {suffix}; choose another with --output")
    for path in inputs:
        if target.exists() and path.exists() and target.samefile(path):
            raise MtmError(
                f"{target}: the output is the input itself, which would be lost; choose another with --output"
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise cannot_write(target, error) from error


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def only_candidate(patterns: tuple[str, ...], what: str, flag: str, made_by: str, folder: Path | None = None) -> Path:
    """The one file in `folder` (default: the working folder) that matches one of the glob `patterns`.

    Raises MtmError listing the candidates and the `flag` to choose with where there are several, and naming the command
    that makes one (`made_by`) where there is none.
    """
    folder = folder or Path.cwd()
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if not path.name.startswith(".")})
    if len(found) == 1:
        return found[0]
    wanted = " or ".join(patterns)
    if not found:
        raise MtmError(f"no {what} ({wanted}) in {folder}; make one with {made_by}, or name one with {flag}")
    names = ", ".join(path.name for path in found)
    raise MtmError(f"{len(found)} files could be the {what} in {folder} ({names}); choose one with {flag}")
