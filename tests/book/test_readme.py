"""The README and the prose around the chapters: in order, without dead links, true to chapters, Makefile, package."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.core import TyperCommand
from typer.testing import CliRunner

import cdlib
from bookbuild import chapters
from cdlib.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN = "Bring your own network and data"
SECTIONS = [
    "Two commands",
    "Chapters",
    "Rerun a chapter",
    OWN,
    "Where the recorded results come from",
    "How to cite",
]
PROSE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE-TEXT.md"]


def section(title: str) -> str:
    """Return the text of one section of the README."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    """Return the contents of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def targets() -> set[str]:
    """Return the names of the Makefile's targets."""
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def chapter_table(text: str) -> list[tuple[str, str, str]]:
    """Return number, title and link of every row of a table of chapters."""
    return re.findall(r"^\| *(\d+) *\| *\[(.+?)\]\((.+?)\)", text, re.MULTILINE)


@functools.cache
def chapters_in_toc() -> list[chapters.Chapter]:
    """Return the chapters that the table of contents lists, in its order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    known = {f"notebooks/{chapter.name}": chapter for chapter in chapters.find(ROOT)}
    return [known[file] for file in files if file in known]


def test_sections_stand_in_order() -> None:
    assert re.findall(r"^## (.+)$", README, re.MULTILINE) == SECTIONS


def test_opening_is_three_lines_and_one_picture() -> None:
    opening = README.split("\n## ")[0]
    _, lines, *rest = [part for part in opening.split("\n\n") if part.strip()]
    assert len(lines.splitlines()) == 3
    assert "".join(rest).count("<img ") == 1
    assert len(re.findall(r'<img [^>]*alt="[^"]{40,}"', opening)) == 1


def test_the_two_commands_come_first_and_are_targets() -> None:
    first = blocks(section("Two commands"), "sh")[0]
    assert re.findall(r"^make ([\w-]+)", first, re.MULTILINE) == ["book", "test"]


@pytest.mark.parametrize("name", PROSE)
def test_every_make_command_is_a_target(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    used = set(
        re.findall(
            r"(?:^|`|\s)make ([a-z][\w-]*)(?=[`\s])", "\n".join(re.findall(r"`[^`\n]+`", text) + blocks(text, "sh"))
        )
    )
    assert used <= targets()


def test_table_of_chapters_is_that_of_the_notebooks() -> None:
    expected = [(str(int(c.number)), c.title, f"notebooks/{c.name}.ipynb") for c in chapters_in_toc()]
    assert chapter_table(section("Chapters")) == expected


def test_landing_page_has_the_same_chapters() -> None:
    text = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    expected = [(str(int(c.number)), c.title, f"/notebooks/{c.name}") for c in chapters_in_toc()]
    found = re.findall(r"^\| *(\d+) *\| *\{doc\}`(.+?) <(.+?)>`", text, re.MULTILINE)
    assert found == expected


def test_course_plan_has_the_chapters_and_their_times() -> None:
    text = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| *(\d+) *\| *\{doc\}`(.+?) <.+?>` *\| *(\d+) *\| *(\d+) *\|", text, re.MULTILINE)
    times = [
        re.search(r":class: time\n\n(.*?)\n:::", c.path.read_text(encoding="utf-8"), re.DOTALL)
        for c in chapters_in_toc()
    ]
    minutes = [re.findall(r"(\d+) minutes", time[1]) for time in times if time]
    expected = [(str(int(c.number)), c.title, *m) for c, m in zip(chapters_in_toc(), minutes, strict=True)]
    assert found == expected


@pytest.mark.parametrize("name", PROSE)
def test_relative_links_resolve(name: str) -> None:
    text = re.sub(r"^(`{3,}).*?^\1$", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    here = [link.partition("#")[0] for link in links if not link.startswith(("http://", "https://", "#"))]
    assert [link for link in here if not (ROOT / link).exists()] == []


def commands() -> list[list[str]]:
    """Return the words of the README's commands `cdlib`."""
    lines = [shlex.split(line, comments=True) for line in blocks(section(OWN), "sh")[0].splitlines()]
    return [words[1:] for words in lines if words[0] == "cdlib"]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return what the README's Python prints, then what its commands on the network file of its own do."""
    folder = tmp_path_factory.mktemp("mynet")
    network, snippet = blocks(section(OWN), "python")
    (folder / "mynet.py").write_text(network, encoding="utf-8")
    tried = [words for words in commands() if "mynet.py:build" in words]
    assert [words[0] for words in tried] == ["profile", "compare"]
    tried[1] += ["--runs", "2"]  # many runs make latencies precise, which nobody looks at here
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        exec(snippet, {"__name__": "__main__"})
        ran = [CliRunner().invoke(app, words, catch_exceptions=False) for words in tried]
    assert [one.exit_code for one in ran] == [0, 0], [one.stderr for one in ran]
    return [out.getvalue(), *(one.stdout for one in ran)]


def test_python_of_the_readme_prints_what_it_says(printed: list[str]) -> None:
    promised = re.findall(r"# (\d+)$", blocks(section(OWN), "python")[1], re.MULTILINE)
    assert promised
    assert printed[0].splitlines()[: len(promised)] == promised


def test_commands_of_the_readme_run(printed: list[str]) -> None:
    assert ["MACs" in text for text in printed[1:]] == [True, True]


def test_commands_of_the_readme_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TyperCommand, "invoke", lambda self, context: None)  # once the words are parsed
    assert {words[0] for words in commands()} >= {"profile", "compare", "groups", "prune", "data"}
    for words in commands():
        assert CliRunner().invoke(app, words).exit_code == 0, words
    assert CliRunner().invoke(app, ["prune", "resnet18_cifar", "--ration", "0.5"]).exit_code == 2


def test_template_of_a_chapter_is_read_as_one(tmp_path: Path) -> None:
    [template] = re.findall(
        r"^`{5}markdown\n(.*?)^`{5}$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S
    )
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_example.md").write_text(template, encoding="utf-8")
    [chapter] = chapters.find(tmp_path)
    assert chapter.title == "An example chapter"
    assert all(chapter.notes.values())
    closing = re.findall(r"^## (.+)$", template, re.MULTILINE)[-5:]
    assert closing == ["Before and after", "Pitfalls", "Summary", "Exercises", "References"]


def test_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == cdlib.__version__
    assert f"## [{cdlib.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_picture_shows_present_counts() -> None:
    spec = importlib.util.spec_from_file_location("make_overview", ROOT / "book" / "figures" / "make_overview.py")
    assert spec is not None and spec.loader is not None
    overview = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(overview)
    for theme in overview.THEMES:
        stored = (overview.FOLDER / f"overview-{theme}.svg").read_text(encoding="utf-8")
        assert stored == overview.draw(theme), "run: python book/figures/make_overview.py"
