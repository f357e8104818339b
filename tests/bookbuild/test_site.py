"""The built site, as a browser sees it from the disk; and the settings it is built with."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
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
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OFFLINE = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OFFLINE += ["--disable-component-update", "--disable-sync"]

# For each text that a reader reads: its contrast with what is behind it (WCAG 2: 4.5 or more is legible).
CONTRAST = """() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] > 0.9) return color;
    }
    return [255, 255, 255];
  };
  const kinds = ["p", "li", "a", "th", "td", "h1", "h2", "h3", "figcaption span", "pre span", "code span", "summary"];
  const found = new Set();
  for (const node of document.querySelectorAll(kinds.map(kind => `article ${kind}`).join(","))) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.offsetParent || node.closest(".headerlink, .toggle-hidden")) continue;
    const ground = behind(node);
    let opacity = 1;
    for (let up = node; up; up = up.parentElement) opacity *= getComputedStyle(up).opacity;
    const ink = rgb(getComputedStyle(node).color).slice(0, 3).map((v, i) => v * opacity + ground[i] * (1 - opacity));
    const [a, b] = [light(ink), light(ground)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const text = node.textContent.trim().slice(0, 40);
    if (ratio < 4.5) found.add(`${node.tagName}.${node.className} ${ratio.toFixed(1)}: ${text}`);
  }
  return [...found];
}"""


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
    illegible: dict[str, list[str]] = field(default_factory=dict)
    too_wide: int = 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not (SITE / "index.html").exists():
        pytest.skip("the site is not built: make book")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=program, args=OFFLINE)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def visits(browser: Browser) -> list[Visit]:
    """Open every page once: wide, then as a phone, in both themes."""
    found = []
    page = browser.new_page(viewport={"width": 1300, "height": 900})
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
        for theme in ("light", "dark"):
            page.evaluate(f"document.documentElement.dataset.theme = {theme!r}")
            visit.illegible[theme] = page.evaluate(CONTRAST)
        page.set_viewport_size({"width": 390, "height": 844})
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


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_legible(visits: list[Visit], theme: str) -> None:
    assert [(visit.page, visit.illegible[theme]) for visit in visits if visit.illegible[theme]] == []


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
