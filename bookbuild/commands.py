"""What the Makefile asks for, one function each; exit code 1 if a chapter or the build failed, 2 for bad input."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from bookbuild import chapters, notebooks, site
from bookbuild.execution import building, execute
from cdlib.errors import CdlibError, check_choice


def main(arguments: Sequence[str]) -> int:
    """Do what the words of a command line say and return the exit code; see `bookbuild.__main__`."""
    for end in (signal.SIGTERM, signal.SIGHUP):  # being told to end, too, leaves no kernel running
        if signal.getsignal(end) is not signal.SIG_IGN:  # as under nohup
            signal.signal(end, signal.default_int_handler)
    actions = {"book": _book, "chapter": _chapter, "chapters": _chapters, "pair": _pair}
    try:
        words = [word for word in arguments if not word.startswith("--jobs=")]
        jobs = _count([word.partition("=")[2] for word in arguments if word not in words] or ["2"])
        action, *rest = words or ["book"]
        check_choice("action", action, actions)
        return actions[action](rest, jobs)
    except CdlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the chapters that were done are kept.", file=sys.stderr)
        return 130


def _chapters(_: Sequence[str], __: int) -> int:
    """List the chapters with their parameters, and the profiles."""
    root, lines = chapters.checkout(), []
    for chapter in chapters.find(root):
        lines.append(f"{chapter.number} {chapter.title}")
        for name, value in chapter.parameters.items():
            lines.append(f"     {f'{name} = {value!r}':24}  # {chapter.notes[name]}".rstrip(" #"))
    print(*lines, f"profiles: {', '.join(chapters.profiles(root))}", sep="\n")
    return 0


def _book(arguments: Sequence[str], jobs: int) -> int:
    root = chapters.checkout()
    planned = chapters.plan(root, profile=arguments[0] if arguments else "quick")
    site.check_contents([job.chapter for job in planned], root)
    with building(root):
        results = execute(planned, root, jobs)
        failed = sum(result.error is not None for result in results)
        if failed:
            print(
                f"error: {failed} of {len(results)} chapters failed (see above); the site was not built.",
                file=sys.stderr,
            )
            return 1
        try:
            print(f"The book is {site.build(results, root)}")
        except CdlibError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


def _chapter(arguments: Sequence[str], jobs: int) -> int:
    if len(arguments) < 2:
        raise CdlibError("say which chapter and how: make chapter N=02 PROFILE=laptop PARAMS='seed=3 lr=0.1'.")
    numbers, profile, *pairs = arguments
    values: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise CdlibError(f"{pair!r} is no parameter; give name=value, as in PARAMS='seed=3 lr=0.1'.")
        if name in values:
            raise CdlibError(f"parameter {name!r} is given twice.")
        values[name] = value
    root = chapters.checkout()
    planned = chapters.plan(root, numbers.split(","), profile=profile, parameters=values)
    with building(root):
        results = execute(planned, root, jobs)
    for result in results:
        if result.path.exists():
            print(f"The executed notebook is {result.path}")
    return 1 if any(result.error for result in results) else 0


def _pair(arguments: Sequence[str], jobs: int) -> int:
    root = chapters.checkout()
    planned = chapters.plan(root, arguments or None)
    with building(root):
        results = execute(planned, root, jobs)
        for result in results:
            target = result.job.chapter.path.with_suffix(".ipynb")
            if not result.error and notebooks.write(notebooks.without_record(notebooks.read(result.path)), target):
                print(f"wrote {target}")
    return 1 if any(result.error for result in results) else 0


def _count(words: Sequence[str]) -> int:
    jobs = int(words[-1]) if words[-1].isdecimal() else 0
    if jobs < 1:
        raise CdlibError(f"jobs is {words[-1]}; run at least one chapter at a time.")
    return jobs
