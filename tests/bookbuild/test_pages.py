"""What Sphinx and its theme leave out of pages, by hand-made pieces of pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from bookbuild import pages


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '<a href="api.html">API</a><details><summary><span></span></summary>',
            '<a href="api.html">API</a><details><summary aria-label="API: pages"><span></span></summary>',
        ),
        (
            '<a href="#">API</a><details open="open"><summary><i></i></summary>',
            '<a href="#">API</a><details open="open"><summary aria-label="API: pages"><i></i></summary>',
        ),
        ('<summary aria-label="Toggle hidden content">\n<p>Show</p>', "<summary>\n<p>Show</p>"),
        (
            '<button class="btn search-button-field b" aria-label="Search">',
            '<button class="btn search-button-field b">',
        ),
        (
            '<i class="theme-switch fa" data-mode="dark" title="Dark"></i>',
            '<i class="theme-switch fa" data-mode="dark"></i>',
        ),
        ('<div class="citation" id="id1" role="doc-biblioentry">', '<div class="citation" id="id1" role="listitem">'),
        ('<th></th><th>a</th><th class="head"><p></p></th>', "<td></td><th>a</th><td></td>"),
    ],
)
def test_names_and_roles_are_mended_once(before: str, after: str, tmp_path: Path) -> None:
    assert pages.mend(before, tmp_path) == after
    assert pages.mend(after, tmp_path) == after


def test_a_figure_too_wide_for_a_phone_can_be_scrolled_and_reached(tmp_path: Path) -> None:
    for name, width in (("narrow", pages.WIDE), ("wide", pages.WIDE + 0.5)):
        (tmp_path / f"{name}.svg").write_text(f'<svg xmlns="s" height="9pt" width="{width}pt" viewBox="0 0 1 1">')
        figure = f'<figure class="align-default" id="f">\n<img alt="A map of &gt; and &lt;" src="{name}.svg" />'
        wide = figure.replace('class="', 'tabindex="0" class="wide ')
        assert pages.mend(figure, tmp_path) == (wide if name == "wide" else figure)
