"""Run a function in processes of their own, which fork from one that has imported everything already."""

from __future__ import annotations

import multiprocessing as mp
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST_S = 300


def in_processes(function: Callable[..., None], *arguments: Any, folder: Path, world: int = 1) -> None:
    """Run a function of a module in `world` processes at once, and raise what it raised in one of them.

    With more than one, they have the environment that launchers of `torch.distributed` set.
    """
    server = mp.get_context("forkserver")
    server.set_forkserver_preload(["accelerate.utils", "cdlib.train", "cdlib.pruning", "pytest", "sklearn.metrics"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(world)}
    started = []
    for rank in range(world):
        own = {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        words = folder / f"error{rank}"
        process = server.Process(target=_run, args=(function, arguments, {**own, "ACCELERATE_USE_CPU": "true"}, words))
        process.start()
        started.append((process, words))
    try:
        for process, words in started:
            process.join(LONGEST_S)
            assert process.exitcode == 0, words.read_text() if words.exists() else f"ended with {process.exitcode}"
    finally:
        for process, _ in started:
            process.kill()


def _run(function: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str], words: Path) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except BaseException:
        words.write_text(traceback.format_exc())
        raise
