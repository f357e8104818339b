"""Where a record comes from: code, versions, machine, command and date, without a name of host, user or folder."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cdlib
from cdlib.report import hardware

# The folders of an absolute path: from "/", "~/" or "C:\\" at the start or after a separator to the last slash.
_FOLDERS = re.compile(r"(?<![^=:,;'\"(\[\s])(?:~|[A-Za-z]:)?[\\/](?![\\/])(?:[^\\/=:,;'\"]+[\\/])*(?=[^\\/]|$)")
PACKAGES = ("torch", "torchvision", "numpy")


def provenance() -> dict[str, Any]:
    """Return the provenance of a run that starts now, in this process, in the repository around the current folder.

    That is the `date` (UTC, to the second), `commit` and `dirty` (None outside a repository), the `command`, `versions`
    (None for a package that is not installed), and the `machine` (see `cdlib.report.hardware`).
    """
    versions = {"python": platform.python_version(), "cdlib": cdlib.__version__}
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **code(),
        "command": command(sys.orig_argv),
        "versions": versions | {package: _version(package) for package in PACKAGES},
        "machine": hardware(),
    }


def code() -> dict[str, str | bool | None]:
    """Return the `commit` checked out around the current folder and whether the tree was `dirty`.

    Records do not make a tree dirty, or the second run of a sweep would always be. Both are None outside a repository.
    """
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--", ":/", ":(top,exclude)results")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def command(arguments: list[str]) -> str:
    """Return a command line without its folders: of a path in it only the name stays, of inline code nothing.

    A notebook's kernel is started by a file of random name; its command is just "notebook".
    """
    if any("ipykernel_launcher" in argument for argument in arguments):
        return "notebook"
    parts = list(arguments)
    if "-c" in parts[:-1]:
        parts[parts.index("-c") + 1] = "..."
    return " ".join(_FOLDERS.sub("", part) for part in parts)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Return what git prints, or None where there is no git, no repository or no commit."""
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=Path.cwd())
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
