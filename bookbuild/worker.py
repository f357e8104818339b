"""One chapter in a process of its own: papermill executes it, and a pipe carries what becomes of it.

Nothing of the library is imported here, which would take seconds a chapter.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def run(
    folder: Path, place: Path, parameters: Mapping[str, Any], environment: Mapping[str, str], pipe: Connection
) -> None:
    """Execute ``in.ipynb`` of a folder to ``out.ipynb``, which papermill saves after every cell.

    What the kernel writes past the notebook goes to ``log`` in the folder; `place` is its working directory, and
    `environment` is added to its environment. Without `parameters`, no cell is added. The pipe is sent the index of
    every cell that starts, then None, or the reason why the last one failed.
    """
    os.environ.update(environment)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    for sent in (signal.SIGINT, signal.SIGHUP):  # they reach the parent too, which ends the kernel and its children
        signal.signal(sent, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # papermill then ends the kernel
    threading.Thread(target=_follow_the_parent, daemon=True).start()
    logging.disable()  # of papermill; an error comes through the pipe
    import papermill
    from nbclient.exceptions import DeadKernelError

    failure = None
    try:
        papermill.execute_notebook(
            folder / "in.ipynb",
            folder / "out.ipynb",
            dict(parameters),
            kernel_name="python3",
            progress_bar=False,
            cwd=place,
            on_cell_start=lambda cell_index, **_: pipe.send(cell_index),
            on_cell_executed=_check,
        )
    except _CellError as error:
        failure = str(error)
    except DeadKernelError:
        failure = "the kernel died (out of memory, or killed)"
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    pipe.send(failure)


class _CellError(Exception):
    """What a cell raised, or did to the kernel."""


def _check(execute_reply: Mapping[str, Any], **_: Any) -> None:
    """Raise unless a cell went well; papermill itself takes `sys.exit(0)` and `exit()` for the end of a good run."""
    reply = execute_reply["content"]
    if reply["status"] != "ok":
        raise _CellError(": ".join(filter(None, [reply.get("ename", "error"), reply.get("evalue")])))
    if any(action.get("source") == "ask_exit" for action in reply.get("payload", [])):
        raise _CellError("the cell ends the kernel")


def _follow_the_parent() -> None:
    """End this process, and with it the kernel, when the one that started it is gone, whatever ended it."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
