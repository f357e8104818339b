"""The built site, as a browser sees it from the disk; and the settings it is built with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from bookbuild import chapters, notebooks, site
from bookbuild.chapters import Result
from cdlib.errors import CdlibError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"

# Of highlighted code one word of each colour is looked at: pages have up to 10,000.
ONE_OF_EACH = """() => {
  const seen = new Set();
  for (const word of document.querySelectorAll("div.highlight pre span")) {
    const kind = `${word.className} ${word.closest(".cell_output") ? "printed" : "typed"}`;
    if (seen.has(kind)) word.replaceWith(word.textContent);
    seen.add(kind);
  }
}"""
# What axe finds and calls serious or critical. Names and roles are the same in both themes, colours are not.
AXE = """async options => {
  const found = await axe.run({exclude: ["mjx-container"]}, {resultTypes: ["violations"], preload: false, ...options});
  const bad = found.violations.filter(rule => ["serious", "critical"].includes(rule.impact));
  return bad.flatMap(rule => rule.nodes.map(node => `${rule.id}: ${node.html.slice(0, 100)}`));
}"""
CHECKS: dict[str, dict[str, Any]] = {
    "light": {"rules": {"label-content-name-mismatch": {"enabled": True}}},
    "dark": {"runOnly": ["color-contrast", "link-in-text-block"]},
    "phone": {"runOnly": ["scrollable-region-focusable"]},
}
CLIPPED = (
    "[...document.querySelectorAll('.tag_common-table .output')].filter(o => o.scrollWidth > o.clientWidth).length"
)
FROZEN = """() => [...document.querySelectorAll(".tag_common-table .output")].every(output => {
  output.scrollLeft = 80;
  const edge = output.getBoundingClientRect().left + 1;
  const first = [...output.querySelectorAll("th:first-child")];
  const far = Math.min(80, output.scrollWidth - output.clientWidth);
  return output.scrollLeft === far && first.every(th => th.getBoundingClientRect().left <= edge);
})"""
REACHED = """() => [...document.querySelectorAll("pre, .cell_output > .output")].every(box =>
  box.tabIndex === (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight ? 0 : -1))"""
STILL = "*, *::before, *::after { transition: none !important; }"  # colours that have arrived


@dataclass
class Visit:
    """What happened while one page was open."""

    page: str
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    abroad: list[str] = field(default_factory=list)
    formulas: int = 0
    rendered: int = 0
    pictures: int = 0
    broken: int = 0
    violations: dict[str, list[str]] = field(default_factory=dict)
    too_wide: int = 0
    clipped: list[int] = field(default_factory=list)
    frozen: bool = True
    stops: int = 0
    solutions: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def visits(browser: Browser) -> list[Visit]:
    """Open every page once: wide, then as a phone, in both themes."""
    found = []
    page = browser.new_page()
    page.set_default_timeout(120_000)
    axe = pytest.importorskip("axe_playwright_python.base").AXE_SCRIPT
    visit = Visit("")
    page.on("request", lambda request: visit.abroad.append(request.url) if not is_local(request.url) else None)
    page.on("requestfailed", lambda request: visit.failed.append(f"{request.url}: {request.failure}"))
    page.on("console", lambda message: visit.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    for file in pages():
        visit = Visit(file.relative_to(SITE).as_posix())
        page.set_viewport_size({"width": 1300, "height": 900})
        page.goto(file.as_uri(), wait_until="load")
        page.evaluate("() => window.MathJax?.startup?.promise")
        visit.formulas = page.locator("span.math, div.math").count()
        visit.rendered = page.locator("mjx-container:has(mjx-math)").count()
        visit.pictures = page.locator("article img").count()
        visit.broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth && i.offsetParent).length")
        visit.stops = page.locator("mjx-container[tabindex]").count()
        visit.solutions = page.locator("details.solution > summary").all_inner_texts()
        page.add_style_tag(content=STILL)
        page.evaluate(ONE_OF_EACH)
        page.evaluate(axe)
        for width, theme in ((1920, "light"), (1300, "dark"), (400, "phone")):
            page.set_viewport_size({"width": width, "height": 900})
            if theme == "phone":
                page.wait_for_function(REACHED)  # the theme makes stops of boxes that scroll, a while after a resize
            else:
                page.evaluate(f"document.documentElement.dataset.theme = {theme!r}")
                visit.clipped.append(page.evaluate(CLIPPED))
            visit.violations[theme] = page.evaluate(AXE, CHECKS[theme])
        visit.frozen = page.evaluate(FROZEN)
        visit.too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        found.append(visit)
    return found


def pages() -> list[Path]:
    """Return every page but the redirection from the site's root."""
    return [
        path for path in sorted(SITE.rglob("*.html")) if path != SITE / "index.html" and "_static" not in path.parts
    ]


def is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:", "about:"))


def test_every_page_loads_without_network_and_without_an_error(visits: list[Visit]) -> None:
    assert {f"notebooks/{chapter.name}.html" for chapter in chapters.find(ROOT)} <= {visit.page for visit in visits}
    assert [(visit.page, visit.abroad) for visit in visits if visit.abroad] == []
    assert [(visit.page, visit.failed) for visit in visits if visit.failed] == []
    assert [(visit.page, visit.errors) for visit in visits if visit.errors] == []


def test_all_mathematics_is_rendered_and_all_pictures_show(visits: list[Visit]) -> None:
    assert sum(visit.formulas for visit in visits) > 0
    assert [(visit.page, visit.formulas, visit.rendered) for visit in visits if visit.formulas != visit.rendered] == []
    assert sum(visit.pictures for visit in visits) > 0
    assert [visit.page for visit in visits if visit.broken] == []


@pytest.mark.parametrize("view", CHECKS)
def test_pages_can_be_used_by_eye_by_ear_and_by_keyboard(visits: list[Visit], view: str) -> None:
    assert [(visit.page, visit.violations[view]) for visit in visits if visit.violations[view]] == []


def test_the_common_table_fits_and_on_a_phone_its_first_column_stays(visits: list[Visit]) -> None:
    assert [(visit.page, visit.clipped) for visit in visits if any(visit.clipped)] == []
    assert [visit.page for visit in visits if not visit.frozen] == []


def test_each_solution_has_a_name_and_no_formula_is_a_tab_stop(visits: list[Visit]) -> None:
    assert sum(len(visit.solutions) for visit in visits) >= 3 * len(chapters.find(ROOT))
    for visit in visits:
        assert len(set(visit.solutions)) == len(visit.solutions), visit.page
        assert all(re.fullmatch(r"Solution to exercise (\d+\.)?\d+", title) for title in visit.solutions), visit.page
        assert visit.stops == 0, visit.page


def test_chapters_are_light_and_nothing_is_there_for_debuggers_only(browser: Browser) -> None:
    assert list(SITE.rglob("*.map")) == []
    for file in (SITE / "notebooks").glob("*.html"):
        pictures = set(re.findall(r'src="([^"]+_images/[^"]+)"', file.read_text(encoding="utf-8")))
        size = sum(part.stat().st_size for part in (file, *((file.parent / name).resolve() for name in pictures)))
        assert size < 2e6, f"{file.name}: {size / 1e6:.1f} MB"


def test_a_phone_shows_whole_lines(visits: list[Visit]) -> None:
    assert [(visit.page, visit.too_wide) for visit in visits if visit.too_wide > 0] == []


def test_search_finds_a_chapter(browser: Browser) -> None:
    chapter = chapters.find(ROOT)[-1]
    word = max(re.findall("[a-z]+", chapter.title.lower()), key=len)
    page = browser.new_page()
    page.goto(f"{(SITE / 'search.html').as_uri()}?q={word}")
    page.locator(f"#search-results li a[href*='notebooks/{chapter.name}.html']").first.wait_for(timeout=30_000)


def test_pages_name_no_resource_of_the_network(browser: Browser) -> None:
    tags = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"((?:https?:)?//[^\"]*)\"")
    assert [(page.name, found) for page in pages() if (found := tags.findall(page.read_text(encoding="utf-8")))] == []


def settings(folder: Path, url: str) -> dict[str, Any]:
    text = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    text["repository"]["url"] = url
    (folder / "_config.yml").write_text(yaml.safe_dump(text))
    found: dict[str, Any] = site.config(folder)
    return found


def test_buttons_that_need_the_repository_appear_only_with_its_address(tmp_path: Path) -> None:
    without = settings(tmp_path, "")
    assert "repository" not in without
    theme = without["sphinx"]["config"]["html_theme_options"]
    assert not {"repository_url", "use_repository_button", "launch_buttons"} & set(theme)

    theme = settings(tmp_path, "https://example.org/book")["sphinx"]["config"]["html_theme_options"]
    assert theme["repository_url"] == "https://example.org/book"
    assert theme["use_repository_button"] and theme["use_issues_button"]
    assert {"colab_url", "binderhub_url"} <= set(theme["launch_buttons"])


def test_an_empty_site_and_a_chapter_without_outputs_are_refused(tmp_path: Path, small_book: Any) -> None:
    [job] = chapters.plan(small_book(_01_first=["seed = 0"]))
    results = [Result(job, job.chapter.path, 0.0)]
    html = tmp_path / "html"
    (html / "notebooks").mkdir(parents=True)
    with pytest.raises(CdlibError, match="is empty"):
        site.check(results, html)
    (html / "index.html").write_text("first page")
    with pytest.raises(CdlibError, match="is empty"):
        site.check([], html)
    page = html / "notebooks" / "01_first.html"
    for text, message in [
        ("only words", "ran no code"),
        ('<div class="cell_output"><pre>Traceback (most recent call last)', "an error"),
    ]:
        page.write_text(text)
        with pytest.raises(CdlibError, match=message):
            site.check(results, html)
    page.write_text('<div class="cell_output">42</div>')
    site.check(results, html)


def test_a_site_takes_the_place_of_the_last_when_it_is_whole(
    small_book: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book = small_book(_01_first=["seed = 0", "print(seed)"])
    (book / "_config.yml").write_text(yaml.safe_dump({"sphinx": {"config": {"html_theme_options": {}}}}))
    (book / "book" / "this_build.md").write_text(f"# This build\n\n{site.TABLE}\n")
    [job] = chapters.plan(book, parameters={"seed": 3})
    result = Result(job, book / "_build" / "executed" / "01_first.ipynb", 2.0)
    notebooks.write(notebooks.assemble(job.chapter.source, job.chapter.source, {"seconds": 2.0}), result.path)
    pages, builds = "one", []

    def sphinx(source: Path, to: Path, _: Path) -> int:
        builds.append(pages)
        assert "`seed = 3` | 2 s |" in (source / "book" / "this_build.md").read_text()
        assert notebooks.read(source / "notebooks" / "01_first.ipynb").metadata.get("cdlib") is None
        assert (source / "assets" / "mathjax" / "tex-chtml.js").is_file()
        (to / "notebooks").mkdir(parents=True)
        (to / "index.html").write_text(pages)
        if pages == "stopped":
            raise KeyboardInterrupt
        (to / "notebooks" / "01_first.html").write_text("nothing" if pages == "empty" else "cell_output")
        return int(pages == "warned")

    monkeypatch.setattr(site, "_sphinx", sphinx)
    first = site.build([result], book)
    assert (first, first.read_text()) == (book / "_build" / "html" / "index.html", "one")
    assert site.build([result], book) == first and builds == ["one"]
    assert "up to date" in capsys.readouterr().err

    (book / "book" / "index.md").write_text("# Another beginning\n")
    for pages in ("warned", "empty", "stopped"):
        with pytest.raises(KeyboardInterrupt if pages == "stopped" else CdlibError):
            site.build([result], book)
        assert first.read_text() == "one"
    for damage in (b"", b"\xff\xfe", None):
        pages = f"after {damage!r}"
        assert site.build([result], book).read_text() == pages
        stamp = first.with_name(".hash")
        stamp.unlink() if damage is None else stamp.write_bytes(damage)
    first.parent.rename(book / "_build" / "html.old")  # as a kill between two renamings leaves it
    (book / "book" / "index.md").write_text("# Yet another beginning\n")
    pages = "warned"
    with pytest.raises(CdlibError):
        site.build([result], book)
    assert first.read_text() == "after None"
    assert sorted(path.name for path in (book / "_build").iterdir() if path.name != "html.new") == [
        "executed",
        "html",
        "stage",
    ]
