"""The errors a user can cause, each one line that names the value, what was expected and what to do.

The command line turns a `CdlibError` into that line on standard error and exit code 2; in Python it is a `ValueError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CdlibError(ValueError):
    """Bad input: a name, a shape, a file or a setting that cannot be used as given."""


def check_choice(kind: str, value: object, choices: Iterable[str]) -> None:
    """Raise the error of `unknown` unless a value, of any type, is one of the texts that are known."""
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        raise unknown(kind, value, known)


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise a CdlibError unless a value is an integer from `least` and, if that is given, to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CdlibError(f"{name}={value!r}: give an integer of at least {least}.")
    if most is not None and value > most:
        raise CdlibError(f"{name}={value!r}: give an integer of at most {most}.")


def check_seed(value: object, name: str = "seed") -> None:
    """Raise a CdlibError unless a value is an integer from 0 to 2^63 - 1, which every random generator takes."""
    check_whole(name, value, 0, 2**63 - 1)


def check_share(name: str, value: object) -> None:
    """Raise a CdlibError unless a value is a number from 0 to below 1: a share, or a probability."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise CdlibError(f"{name}={value!r} is no share: give a number from 0 to below 1.")


def unknown(kind: str, name: object, choices: Iterable[str]) -> CdlibError:
    """Return the error for a name that is not among `choices`: with the nearest of them, and all if they are few.

    It is raised by the caller, so that the traceback starts there. `kind` is what the name stands for, such as "model".
    """
    known = sorted(choices)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    message = f"unknown {kind} {str(name)!r}" + (f"; did you mean {near[0]!r}?" if near else ".")
    return CdlibError(f"{message} Known: {', '.join(known)}." if 0 < len(known) <= 12 else message)
