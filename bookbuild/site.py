"""The rendered book: runs the chapters, stages them with the prose, and builds pages that need no network.

``python -m bookbuild.site`` is what the Makefile calls, with ``book [PROFILE]``, ``chapter N PROFILE [NAME=VALUE ...]``
or ``pair [N ...]``.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bookbuild import chapters, execution, notebooks
from bookbuild.execution import Result
from cdlib.errors import CdlibError, check_choice

TABLE = "<!-- the chapters of this build -->"  # in book/this_build.md, replaced by a table
MATHJAX = ("tex-chtml.js", "input/tex/extensions/", "output/chtml/fonts/woff-v2/")


def main(arguments: Sequence[str]) -> int:
    """Do what the Makefile asks and return the exit code: 1 if a chapter or the build failed, 2 for bad input."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being told to end, too, leaves no kernel running
    actions = {"book": _book, "chapter": _chapter, "pair": _pair}
    try:
        action, *rest = arguments or ["book"]
        check_choice("action", action, actions)
        return actions[action](rest)
    except CdlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the chapters that were done are kept.", file=sys.stderr)
        return 130


def config(root: Path) -> dict[str, Any]:
    """Return ``_config.yml`` as the build uses it.

    MathJax comes from the site itself, and the buttons that lead to the repository, Colab and Binder are there only if
    ``repository: url`` is set.
    """
    import yaml

    settings: dict[str, Any] = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    sphinx = settings["sphinx"]["config"]
    sphinx |= {"html_extra_path": ["assets"], "mathjax_path": "../mathjax/tex-chtml.js", "nitpicky": True}
    repository = settings.pop("repository", {})
    if repository.get("url"):
        sphinx["html_theme_options"] |= {
            "repository_url": repository["url"],
            "repository_branch": repository.get("branch", "main"),
            "use_repository_button": True,
            "use_issues_button": True,
            "launch_buttons": {
                "notebook_interface": "jupyterlab",
                "colab_url": "https://colab.research.google.com",
                "binderhub_url": "https://mybinder.org",
            },
        }
    return settings


def check_contents(results: Sequence[Result], root: Path) -> None:
    """Raise `CdlibError` unless ``_toc.yml`` names every chapter, and pages that exist."""
    import yaml

    listed = set(_pages(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))
    made = {f"notebooks/{result.chapter.name}" for result in results}
    for page in sorted(made - listed):
        raise CdlibError(f"{page} is not in _toc.yml; add it there.")
    for page in sorted(listed - made):
        if not (root / f"{page}.md").exists() or page.startswith("notebooks/"):
            raise CdlibError(f"_toc.yml names {page}, which does not exist; add the page or remove the line.")


def stage(results: Sequence[Result], root: Path, to: Path) -> None:
    """Lay out what the site is built from: the executed chapters, ``book/``, the settings and MathJax."""
    import yaml

    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(root / "book", to / "book")
    for result in results:
        notebook = notebooks.without_record(notebooks.read(result.path))
        notebooks.write(notebook, to / "notebooks" / f"{result.chapter.name}.ipynb")
    this_build = to / "book" / "this_build.md"
    this_build.write_text(this_build.read_text(encoding="utf-8").replace(TABLE, _table(results)), encoding="utf-8")
    (to / "_config.yml").write_text(yaml.safe_dump(config(root), sort_keys=False), encoding="utf-8")
    shutil.copy(root / "_toc.yml", to)
    _copy_mathjax(to / "assets" / "mathjax")


def build(results: Sequence[Result], root: Path) -> Path:
    """Build the site unless it is up to date, and return its first page.

    Pages are made in a folder of their own, which takes the place of ``_build/html`` when it is complete and checked: a
    build that fails or is stopped leaves the last good site.

    Raises
    ------
    CdlibError
        If Sphinx gives a warning or a page did not come out as it should.
    """
    top = root / "_build"
    site, new, stamp = top / "html", top / "html.new", top / "html.hash"
    check_contents(results, root)
    stage(results, root, top / "stage")
    state = _hash(top / "stage", execution.surroundings(root))
    if (site / "index.html").exists() and stamp.exists() and stamp.read_text() == state:
        print("The site is up to date.", file=sys.stderr)
        return site / "index.html"
    for folder in (new, top / "doctrees"):
        shutil.rmtree(folder, ignore_errors=True)
    if _sphinx(top / "stage", new, top / "doctrees"):
        raise CdlibError("the site was not built: mend the warnings and errors above.")
    check(results, new)
    stamp.unlink(missing_ok=True)
    shutil.rmtree(site, ignore_errors=True)
    new.rename(site)
    stamp.write_text(state)
    return site / "index.html"


def check(results: Sequence[Result], site: Path) -> None:
    """Raise `CdlibError` unless the site has a first page and every chapter's page shows outputs and no error."""
    if not results or not (site / "index.html").is_file():
        raise CdlibError(f"the site in {site} is empty.")
    for result in results:
        page = site / "notebooks" / f"{result.chapter.name}.html"
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        if "cell_output" not in text:
            raise CdlibError(f"{page} shows no output: the chapter ran no code.")
        if "Traceback (most recent call last)" in text or 'class="output traceback' in text:
            raise CdlibError(f"{page} shows an error.")


def _book(arguments: Sequence[str]) -> int:
    root = chapters.checkout()
    results = chapters.run(profile=arguments[0] if arguments else "quick", root=root)
    failed = sum(result.error is not None for result in results)
    if failed:
        print(
            f"error: {failed} of {len(results)} chapters failed (see above); the site was not built.", file=sys.stderr
        )
        return 1
    try:
        print(f"The book is {build(results, root)}")
    except CdlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _chapter(arguments: Sequence[str]) -> int:
    if len(arguments) < 2 or any("=" not in pair for pair in arguments[2:]):
        raise CdlibError("say which chapter and how: make chapter N=02 PROFILE=laptop PARAMS='seed=3 lr=0.1'.")
    number, profile, *pairs = arguments
    values = dict(pair.split("=", 1) for pair in pairs)
    [result] = chapters.run([number], profile=profile, parameters=values)
    print(f"The executed notebook is {result.path}")
    return 1 if result.error else 0


def _pair(arguments: Sequence[str]) -> int:
    results = chapters.run(arguments or None)
    for result in results:
        target = result.chapter.path.with_suffix(".ipynb")
        if not result.error and notebooks.write(notebooks.without_record(notebooks.read(result.path)), target):
            print(f"wrote {target}")
    return 1 if any(result.error for result in results) else 0


def _sphinx(source: Path, to: Path, doctrees: Path) -> int:
    """Run Sphinx as Jupyter Book does, warnings being errors, and return its exit code."""
    from jupyter_book.sphinx import build_sphinx
    from sphinx.util.console import color_terminal, nocolor

    if not color_terminal():
        nocolor()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python: what extensions do is not the book's business
        code = build_sphinx(
            source,
            to,
            noconfig=True,
            path_config=source / "_config.yml",
            confoverrides={"latex_individualpages": False},
            doctreedir=doctrees,
            warningiserror=True,
            keep_going=True,
            quiet=True,
        )
    if isinstance(code, KeyboardInterrupt):
        raise code
    return code if isinstance(code, int) else 1


def _copy_mathjax(to: Path) -> None:
    """Copy the part of the installed MathJax that pages need and its licence (Apache 2.0; `packaging` has the text)."""
    wanted = [f"static/mathjax/{part}" for part in MATHJAX]
    for file in metadata.files("sphinx-mathjax-offline") or []:
        _, _, inside = file.as_posix().partition("/")
        if inside.startswith(tuple(wanted)):
            target = to / inside.removeprefix("static/mathjax/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target)
    licence = next(file for file in metadata.files("packaging") or [] if file.name == "LICENSE.APACHE")
    shutil.copy(str(licence.locate()), to / "LICENSE")


def _table(results: Sequence[Result]) -> str:
    rows = ["| chapter | changed from the quick profile | run time |", "| --- | --- | ---: |"]
    for result in results:
        own = result.chapter.parameters
        changed = ", ".join(f"`{name} = {value!r}`" for name, value in result.parameters.items() if value != own[name])
        rows.append(f"| {{doc}}`/notebooks/{result.chapter.name}` | {changed or 'nothing'} | {result.seconds:.0f} s |")
    return "\n".join(rows)


def _pages(toc: Any) -> Iterator[str]:
    """Return every page that ``_toc.yml`` names."""
    if isinstance(toc, dict):
        yield from (toc[key] for key in ("root", "file") if key in toc)
        for value in toc.values():
            yield from _pages(value)
    elif isinstance(toc, list):
        for value in toc:
            yield from _pages(value)


def _hash(folder: Path, *more: str) -> str:
    digest = hashlib.sha256(repr(more).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
