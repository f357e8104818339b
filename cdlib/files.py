"""Where the checkout is; and writing a file so that a reader sees the whole of it or none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def checkout() -> Path | None:
    """Return the first folder with a ``_config.yml`` from the current one upwards, or None."""
    here = Path.cwd()
    return next((place for place in (here, *here.parents) if (place / "_config.yml").is_file()), None)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing; it takes its name only once it is complete and on the disk.

    The bytes go to `NAME.PID.tmp` beside it, are flushed to the disk, and the file is then renamed over `path`. If the
    block raises, the temporary file is removed and `path` stays as it was; only a kill leaves a temporary file behind.

    Parameters
    ----------
    path : Path
        The file to write or to replace. Its folder must exist.

    Yields
    ------
    binary file
        To be written by the caller.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must reach the disk too
        sync(path.parent)


def sync(folder: Path) -> None:
    """Bring a folder's list of names to the disk; where the system cannot, that is an OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
