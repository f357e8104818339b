"""The rendered book: executed chapters staged with the prose, and pages made of them that need no network."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from bookbuild import execution, live, notebooks
from bookbuild.chapters import Chapter, Result, read_yaml
from cdlib.errors import CdlibError
from cdlib.text import digest

TABLE = "<!-- the chapters of this build -->"  # in book/this_build.md, replaced by a table
MATHJAX = ("tex-chtml.js", "input/tex/extensions/", "output/chtml/fonts/woff-v2/")


def config(root: Path) -> dict[str, Any]:
    """Return ``_config.yml`` as the build uses it.

    MathJax comes from the site itself, and the buttons that lead to the repository, Colab and Binder are there only if
    ``repository: url`` is set.
    """
    settings: dict[str, Any] = read_yaml(root / "_config.yml")
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


def check_contents(chapters: Sequence[Chapter], root: Path) -> None:
    """Raise `CdlibError` unless ``_toc.yml`` names every chapter, and pages that exist."""
    listed = set(_pages(read_yaml(root / "_toc.yml")))
    made = {f"notebooks/{chapter.name}" for chapter in chapters}
    for page in sorted(made - listed):
        raise CdlibError(f"{page} is not in _toc.yml; add it there.")
    for page in sorted(listed - made):
        if not (root / f"{page}.md").exists() or page.startswith("notebooks/"):
            raise CdlibError(f"_toc.yml names {page}, which does not exist; add the page or remove the line.")


def build(results: Sequence[Result], root: Path) -> Path:
    """Build the site unless it is up to date, and return its first page.

    Pages are made in a folder of their own, which takes the place of ``_build/html`` when it is complete and checked: a
    build that fails or is stopped leaves the last good site. The site holds the hash of what it was made of. A
    CdlibError if Sphinx gives a warning or a page did not come out as it should.
    """
    top = root / "_build"
    site, new, old, staged = (top / name for name in ("html", "html.new", "html.old", "stage"))
    if old.exists() and not site.exists():  # killed on the way from the one to the other
        old.rename(site)
    for folder in (staged, new, old, top / "doctrees"):
        shutil.rmtree(folder, ignore_errors=True)
    stage(results, root, staged)
    files = [path for path in sorted(staged.rglob("*")) if path.is_file()]
    hashes = (f"{path.relative_to(staged).as_posix()} {digest([path.read_bytes()])}\n" for path in files)
    own = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    state = digest([execution.surroundings(root), *hashes, *own]).encode()
    stamp = site / ".hash"
    if (site / "index.html").exists() and stamp.exists() and stamp.read_bytes() == state:
        print("The site is up to date.", file=sys.stderr)
        return site / "index.html"
    if _sphinx(staged, new, top / "doctrees"):
        raise CdlibError("the site was not built: mend the warnings and errors above.")
    check(results, new)
    (new / ".hash").write_bytes(state)
    if site.exists():
        site.rename(old)
    new.rename(site)
    shutil.rmtree(old, ignore_errors=True)
    return site / "index.html"


def stage(results: Sequence[Result], root: Path, to: Path) -> None:
    """Lay out what the site is built from: executed chapters, ``book/``, settings, MathJax, what the live page runs."""
    shutil.copytree(root / "book", to / "book")
    for result in results:
        notebooks.publish(result.path, to / "notebooks" / f"{result.job.chapter.name}.ipynb")
    this_build = to / "book" / "this_build.md"
    this_build.write_text(this_build.read_text(encoding="utf-8").replace(TABLE, _table(results)), encoding="utf-8")
    (to / "_config.yml").write_text(yaml.safe_dump(config(root), sort_keys=False), encoding="utf-8")
    shutil.copy(root / "_toc.yml", to)
    _copy_mathjax(to / "assets" / "mathjax")
    if (page := to / "book" / "_static" / "live").is_dir():
        live.write(root, page)


def check(results: Sequence[Result], site: Path) -> None:
    """Raise `CdlibError` unless the site has a first page and every chapter's page shows outputs and no error."""
    if not results or not (site / "index.html").is_file():
        raise CdlibError(f"the site in {site} is empty.")
    for result in results:
        page = site / "notebooks" / f"{result.job.chapter.name}.html"
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        if "cell_output" not in text:
            raise CdlibError(f"{page} shows no output: the chapter ran no code.")
        if "Traceback (most recent call last)" in text or 'class="output traceback' in text:
            raise CdlibError(f"{page} shows an error.")


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
    for file in metadata.files("sphinx-mathjax-offline") or []:
        _, _, part = file.as_posix().partition("/static/mathjax/")
        if part.startswith(MATHJAX):
            target = to / part
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target)
    licence = next(file for file in metadata.files("packaging") or [] if file.name == "LICENSE.APACHE")
    shutil.copy(str(licence.locate()), to / "LICENSE")


def _table(results: Sequence[Result]) -> str:
    rows = ["| chapter | changed from the quick profile | run time |", "| --- | --- | ---: |"]
    for result in results:
        changed = ", ".join(f"`{name} = {value!r}`" for name, value in result.job.changed.items())
        rows.append(
            f"| {{doc}}`/notebooks/{result.job.chapter.name}` | {changed or 'nothing'} | {result.seconds:.0f} s |"
        )
    return "\n".join(rows)


def _pages(toc: Any) -> Iterator[str]:
    """Return every page that ``_toc.yml`` names."""
    if isinstance(toc, dict):
        yield from (toc[key] for key in ("root", "file") if key in toc)
        toc = list(toc.values())
    if isinstance(toc, list):
        for value in toc:
            yield from _pages(value)
