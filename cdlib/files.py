"""Where the checkout is; and writing a file so that a reader sees the whole of it or none."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def checkout() -> Path | None:
    """Return the first folder with a ``_config.yml`` from the current one upwards, or None."""
    here = Path.cwd()
    return next((place for place in (here, *here.parents) if (place / "_config.yml").is_file()), None)


@contextlib.contextmanager
def atomic(path: Path, *, new: bool = False) -> Iterator[BinaryIO]:
    """Open `path` for writing; it takes its name only once it is complete and on the disk.

    The bytes go to a file `NAME.*.tmp` beside it, in a folder that must exist, are flushed to the disk, and the file is
    then renamed over `path`. If the block raises, the temporary file is removed and `path` stays as it was; only a kill
    leaves a temporary file behind. An OSError, also that of a full disk, names `path`. With `new`, `path` is not
    replaced: of several writers one succeeds, and the others get a FileExistsError.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if new:
            _rename_to_new(temporary, path)
        else:
            os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) in ("None", str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    with contextlib.suppress(OSError):  # the new name must reach the disk too, on systems that can see to it
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Give a finished file a name unless that is taken: a hard link is refused where a rename would overwrite."""
    try:
        os.link(temporary, path)
    except OSError:  # taken; or a file system without hard links (FAT, some network drives): next best, a moment's gap
        if path.exists():
            raise FileExistsError(f"there is already a {path}") from None
        os.rename(temporary, path)
