"""``python -m bookbuild``: what the Makefile calls. Exit code 1 if a chapter or the site failed, 2 for bad input.

``chapters`` lists them; ``book [PROFILE]``, ``chapter N[,N] PROFILE [NAME=VALUE ...]`` and ``pair [N ...]`` run them,
``--jobs=2`` at a time.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bookbuild import chapters, notebooks, site
from bookbuild.execution import building, execute
from cdlib import files
from cdlib.errors import CdlibError, check_choice


def main(arguments: Sequence[str]) -> int:
    """Do what the words of a command line say and return the exit code."""
    for end in (signal.SIGTERM, signal.SIGHUP):  # being told to end, too, leaves no kernel running
        if signal.getsignal(end) is not signal.SIG_IGN:  # as under nohup
            signal.signal(end, signal.default_int_handler)
    actions = {"book": _book, "chapter": _chapter, "chapters": _chapters, "pair": _pair}
    try:
        jobs = next((word.removeprefix("--jobs=") for word in arguments if word.startswith("--jobs=")), "2")
        if not (jobs.isdecimal() and int(jobs)):
            raise CdlibError(f"jobs is {jobs}; run at least one chapter at a time.")
        action, *rest = [word for word in arguments if not word.startswith("--jobs=")] or [""]
        if action in ("", "-h", "--help"):
            print(__doc__)
            return 2 if not action else 0
        check_choice("action", action, actions)
        root = files.checkout()
        if root is None:
            raise CdlibError(f"no book here: no _config.yml in {Path.cwd()} or above; run inside the checkout.")
        return actions[action](root, rest, int(jobs))
    except CdlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the chapters that were done are kept.", file=sys.stderr)
        return 130


def _chapters(root: Path, _: Sequence[str], __: int) -> int:
    """List the chapters with their parameters, and the profiles."""
    found, profiles = chapters.find(root), chapters.profiles(root)
    for chapter in found:
        print(chapter.number, chapter.title)
        for name, value in chapter.parameters.items():
            print(f"     {f'{name} = {value!r}':24}  # {chapter.notes[name]}".rstrip(" #"))
    print(f"profiles: {', '.join(profiles)}")
    return 0


def _book(root: Path, words: Sequence[str], workers: int) -> int:
    jobs = chapters.plan(root, profile=words[0] if words else "quick")
    site.check_contents([job.chapter for job in jobs], root)
    with building(root):
        results = execute(jobs, root, workers)
        if failed := sum(bool(result.error) for result in results):
            line = f"error: {failed} of {len(results)} chapters failed (see above); the site was not built."
            print(line, file=sys.stderr)
            return 1
        try:
            print(f"The book is {site.build(results, root)}")
        except CdlibError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


def _chapter(root: Path, words: Sequence[str], workers: int) -> int:
    if len(words) < 2:
        raise CdlibError("say which chapter and how: make chapter N=02 PROFILE=laptop PARAMS='seed=3 lr=0.1'.")
    numbers, profile, *pairs = words
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise CdlibError(f"{pair!r} is no parameter; give name=value, as in PARAMS='seed=3 lr=0.1'.")
        if name in values:
            raise CdlibError(f"parameter {name!r} is given twice.")
        values[name] = value
    jobs = chapters.plan(root, numbers.split(","), profile=profile, parameters=values)
    with building(root):
        results = execute(jobs, root, workers)
    for result in results:
        if result.path.exists():
            print(f"The executed notebook is {result.path}")
    return int(any(result.error for result in results))


def _pair(root: Path, words: Sequence[str], workers: int) -> int:
    jobs = chapters.plan(root, words or None)
    with building(root):
        results = execute(jobs, root, workers)
        for result in results:
            target = result.job.chapter.path.with_suffix(".ipynb")
            if not result.error and notebooks.publish(result.path, target):
                print(f"wrote {target}")
    return int(any(result.error for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
