"""A Sphinx extension: pages that can be used by ear and by keyboard, and no files that only a debugger wants."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

MENDED = (
    # An entry of a bibliography is an item of a list; what the theme calls it is not allowed there any more.
    (re.compile('role="doc-biblioentry"'), 'role="listitem"'),
    # The sign that opens a branch of the contents is named after what it opens,
    (
        re.compile(r">([^<>]+)</a><details( open=\"open\")?><summary>"),
        r'>\1</a><details\2><summary aria-label="\1: pages">',
    ),
    # and the one that opens a cell by the words that stand on it.
    (re.compile('<summary aria-label="Toggle hidden content">'), "<summary>"),
    # So is the field that opens the search; the switch of colours has a name, and its pictures need none.
    (re.compile(r'(<button class="btn search-button-field [^>]*?) aria-label="Search"'), r"\1"),
    (re.compile(r'(<i class="theme-switch [^>]*?) title="[^"]*"'), r"\1"),
    # The empty corner of a table is no heading.
    (re.compile(r"<th( class=\"head\")?>(<p></p>)?</th>"), "<td></td>"),
)
FIGURE = re.compile(r'<figure class="[^>]*>\s*<img [^>]*src="(?P<picture>[^":]+\.svg)"')
WIDE = 420  # points: shrunk to a phone, text of 10 points in a wider figure has less than 8.5 pixels


def setup(app: Any) -> dict[str, bool]:
    """Register the extension."""
    from sphinx_exercise.nodes import solution_node

    app.setup_extension("sphinx_exercise")
    app.add_node(solution_node, override=True, html=(_open_solution, _close_solution))
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def mend(page: str, folder: Path) -> str:
    """Return a page of the site, which lies in a folder, with the names and roles that Sphinx and its theme leave out.

    A figure wider than `WIDE` becomes one that can be scrolled on a phone, and that the tab key reaches.
    """
    for pattern, text in MENDED:
        page = pattern.sub(text, page)
    return FIGURE.sub(lambda found: _figure(found, folder), page)


def _figure(found: re.Match[str], folder: Path) -> str:
    width = re.search(r'<svg[^>]* width="([\d.]+)pt"', (folder / found["picture"]).read_text(encoding="utf-8"))
    wide = width is not None and float(width[1]) > WIDE
    return found[0].replace('<figure class="', '<figure tabindex="0" class="wide ') if wide else found[0]


def _finish(app: Any, exception: Exception | None) -> None:
    if exception is None:
        for path in Path(app.outdir).rglob("*.html"):
            path.write_text(mend(path.read_text(encoding="utf-8"), path.parent), encoding="utf-8")
        for path in Path(app.outdir).rglob("*.map"):
            path.unlink()


def _open_solution(self: Any, node: Any) -> None:
    """Fold a solution as HTML does, which needs no script, under a title that says to which exercise it belongs."""
    from sphinx_exercise.utils import get_node_number

    exercise = self.builder.env.sphinx_exercise_registry[node["target_label"]]["node"]
    node["classes"] = [name for name in node["classes"] if name != "dropdown"]
    node.pop(0)
    title = f"Solution to exercise {get_node_number(self.builder.app, exercise, 'exercise')}"
    self.body.append(
        f'{self.starttag(node, "details", CLASS="admonition")}<summary class="admonition-title">{title}</summary>\n'
    )


def _close_solution(self: Any, node: Any) -> None:
    self.body.append("</details>\n")
