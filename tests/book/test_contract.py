"""Every chapter keeps to the contract that CONTRIBUTING.md describes: a reader finds the same things in each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import papermill
import pytest
import yaml
from markdown_it import MarkdownIt

from bookbuild import chapters, notebooks
from bookbuild.chapters import Chapter
from bookbuild.notebooks import NotebookNode

ROOT = Path(__file__).parents[2]
CLOSING = ["Before and after", "Pitfalls", "Summary", "Exercises", "References"]


@pytest.fixture(params=[pytest.param(chapter, id=chapter.name) for chapter in chapters.find(ROOT)])
def chapter(request: pytest.FixtureRequest) -> Chapter:
    found: Chapter = request.param
    return found


def prose(chapter: Chapter) -> str:
    return "\n\n".join(cell.source for cell in chapter.source.cells if cell.cell_type == "markdown")


def headings(chapter: Chapter, level: int) -> list[str]:
    tokens = MarkdownIt().parse(prose(chapter))
    return [
        tokens[i + 1].content
        for i, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag == f"h{level}"
    ]


def section(chapter: Chapter, title: str) -> list[NotebookNode]:
    """Return the cells from one second-level heading to the next, the first and the last cut there."""
    found, inside = [], False
    for cell in chapter.source.cells:
        if cell.cell_type == "code":
            found += [cell] if inside else []
            continue
        for part in re.split(r"(?m)^(?=## )", cell.source):
            if part.startswith("## "):
                inside = part.splitlines()[0] == f"## {title}"
            if inside:
                found.append(NotebookNode({**cell, "source": part}))
    return found


def text_of(chapter: Chapter, title: str) -> str:
    return "\n\n".join(cell.source for cell in section(chapter, title) if cell.cell_type == "markdown")


def directives(chapter: Chapter, name: str) -> list[tuple[str, dict[str, str], str]]:
    """Return argument, options and body of each directive of one name."""
    found = []
    for match in re.finditer(rf"(?ms)^(:{{3,}}|`{{3,}})\{{{name}\}} ?(.*?)\n(.*?)^\1\s*$", prose(chapter)):
        options = dict(re.findall(r"(?m)^:([\w-]+): *(.*)$", match[3]))
        body = re.sub(r"(?m)^:[\w-]+:.*\n", "", match[3])
        found.append((match[2].strip(), options, body))
    return found


def items(text: str) -> int:
    return len(re.findall(r"(?m)^(?:[-*]|\d+\.) ", text))


def unmoved(text: str, columns: list[str]) -> list[str]:
    """Return the columns of a table of which a sentence says, with stress, that they did not move."""
    words = {"latency" if "(ms)" in column else column.partition(" (")[0].lower() for column in columns}
    sentences = re.split(r"(?<=[.:;?!*]) +(?=[A-Z*])", " ".join(text.split()))
    negative = [sentence.lower() for sentence in sentences if re.search(r"\*[^*]*\bnot\b[^*]*\*", sentence)]
    return sorted(word for word in words if any(re.search(rf"\b{word}\b", sentence) for sentence in negative))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Latency did **not** move.", ["latency"]),
        ("**Peak memory did not move**: the peak is elsewhere.", ["peak memory"]),
        ("The MACs fell. The column that did *not* move is the\nlatency.", ["latency"]),
        ("There is nothing to see, no column, and latency did not move.", []),
        ("This is **not** a table. Latency fell.", []),
        ("No column moved, latency least of all; *all* is as before. The rows do **not**.", []),
    ],
)
def test_the_check_of_what_did_not_move_sees_what_it_should(text: str, found: list[str]) -> None:
    assert unmoved(text, ["MACs (M)", "p50 (ms)", "p95 (ms)", "peak memory (MB)"]) == found


def test_it_opens_with_label_title_and_a_question(chapter: Chapter) -> None:
    opening = prose(chapter)
    assert opening.startswith(f"(ch-{chapter.number})=\n# ")
    assert headings(chapter, 1) == [chapter.title]
    before = opening.split(":::{admonition}")[0]
    assert len(before.split()) > 15, "say in a paragraph what the chapter asks"


@pytest.mark.parametrize("title", ["Objectives", "Prerequisites", "Time"])
def test_it_says_what_is_learnt_what_is_needed_and_how_long_it_takes(chapter: Chapter, title: str) -> None:
    [(_, options, body)] = [found for found in directives(chapter, "admonition") if found[0] == title]
    assert options == {"class": title.lower()}
    if title == "Objectives":
        assert items(body) >= 2
    elif title == "Time":
        assert "minute" in body or "hour" in body
    else:
        assert body.strip()


def test_its_first_code_cell_holds_the_parameters_as_papermill_sees_them(chapter: Chapter) -> None:
    code = [cell for cell in chapter.source.cells if cell.cell_type == "code"]
    assert notebooks.tags(code[0]) == ["parameters"]
    seen = papermill.inspect_notebook(chapter.path.with_suffix(".ipynb"))
    assert list(seen) == list(chapter.parameters)
    assert all(chapter.notes.values()), "say beside each parameter what it is"


def assigned(code: str) -> Iterator[str]:
    """The names that code at the top level of a notebook gives a value."""
    waiting: list[ast.AST] = [ast.parse(code)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp):
            continue
        if isinstance(node, ast.GeneratorExp):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        waiting += ast.iter_child_nodes(node)


def test_the_check_of_assignments_sees_loops_and_not_functions() -> None:
    code = "for a, b in c:\n    d = 1\ndef f(e):\n    g = [h for h in e]\nwith i as j: k += 1"
    assert sorted(assigned(code)) == ["a", "b", "d", "j", "k"]


def test_parameters_keep_the_values_they_were_given(chapter: Chapter) -> None:
    code = [cell for cell in chapter.source.cells if cell.cell_type == "code"]
    others = [re.sub(r"(?m)^[%!].*", "", cell.source) for cell in code if "parameters" not in notebooks.tags(cell)]
    assert not {name for text in others for name in assigned(text)} & set(chapter.parameters)


def test_its_sections_close_in_the_same_order(chapter: Chapter) -> None:
    titles = headings(chapter, 2)
    assert titles[-5:] == CLOSING
    assert len(titles) > 5, "no body"


def test_it_ends_with_the_common_table_and_says_what_did_not_move(chapter: Chapter) -> None:
    stored = notebooks.read(chapter.path.with_suffix(".ipynb"))
    tagged = [cell for cell in stored.cells if "common-table" in notebooks.tags(cell)]
    inside = [cell.source for cell in section(chapter, "Before and after") if cell.cell_type == "code"]
    assert len(tagged) == 1 and tagged[0].source in inside
    shown = [output.get("data", {}).get("text/html", "") for output in tagged[0].outputs]
    [head] = [html.partition("</thead>")[0] for html in shown if "<table" in html]
    columns = re.findall(r"<th[^>]*>([^<]+)</th>", head)
    assert {"parameters (M)", "MACs (M)", "file (MB)"} <= set(columns)
    assert unmoved(text_of(chapter, "Before and after"), columns), "say in one sentence which column did **not** move"


@pytest.mark.parametrize("title", ["Pitfalls", "Summary"])
def test_pitfalls_and_summary_are_lists(chapter: Chapter, title: str) -> None:
    assert items(text_of(chapter, title)) >= 2


def test_every_exercise_has_a_solution(chapter: Chapter) -> None:
    labels = [options["label"] for _, options, _ in directives(chapter, "exercise")]
    assert len(labels) >= 3
    assert labels == [f"ex-{chapter.number}-{k}" for k in range(1, len(labels) + 1)]
    solved = [*directives(chapter, "solution"), *directives(chapter, "solution-start")]
    assert sorted(argument for argument, _, _ in solved) == labels
    for argument, options, _ in solved:
        assert options == {"label": argument.replace("ex-", "sol-"), "class": "dropdown"}
    assert len(directives(chapter, "solution-start")) == len(directives(chapter, "solution-end"))


def test_every_figure_can_be_seen_by_ear_and_is_referred_to(chapter: Chapter) -> None:
    stored = notebooks.read(chapter.path.with_suffix(".ipynb"))
    figures = [(options.get("name"), options.get("alt", "")) for _, options, _ in directives(chapter, "figure")]
    for cell in stored.cells:
        drawn = [
            output for output in cell.get("outputs", []) if {"image/png", "image/svg+xml"} & set(output.get("data", {}))
        ]
        if drawn:
            assert len(drawn) == 1, "one figure a cell"
            options = cell.metadata.get("mystnb", {})
            assert options.get("figure", {}).get("caption"), f"no caption: {notebooks.first_line(cell.source)}"
            figures.append((options["figure"].get("name"), options.get("image", {}).get("alt", "")))
    assert figures, "a chapter shows something"
    for name, alt in figures:
        assert name and name.startswith(f"fig-{chapter.number}-")
        assert len(alt) >= 40, f"{name}: the alt text does not say what is to be seen"
        assert f"{{numref}}`{name}`" in prose(chapter), f"the text does not refer to {name}"


def test_labels_carry_the_number_of_the_chapter(chapter: Chapter) -> None:
    labels = re.findall(r"(?m)^:label: *(\S+)", prose(chapter)) + re.findall(r"(?m)^\(([\w-]+)\)=$", prose(chapter))
    assert all(re.match(rf"(?:ch|fig|eq|ex|sol|tab|sec)-{chapter.number}\b", label) for label in labels), labels


def test_it_cites_what_it_lists(chapter: Chapter) -> None:
    assert re.search(r"\{cite:[pt]s?\}`", prose(chapter))
    [(_, options, _)] = directives(chapter, "bibliography")
    assert options == {"filter": "docname in docnames"}
    assert "{bibliography}" in text_of(chapter, "References")


def test_it_is_in_the_table_of_contents(chapter: Chapter) -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    assert f"notebooks/{chapter.name}" in files


def shown(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The code cells whose code is not folded away."""
    folded = {"hide-input", "hide-cell", "remove-input", "remove-cell", "parameters"}
    return [cell for cell in cells if cell.cell_type == "code" and not folded.intersection(notebooks.tags(cell))]


def test_it_shows_at_most_350_lines_of_code(chapter: Chapter) -> None:
    lines = [line for cell in shown(chapter.source.cells) for line in cell.source.splitlines() if line.strip()]
    assert len(lines) <= 350, "fold what is not the point, or make it a function of the library"


def test_what_a_section_claims_stands_in_one_folded_cell(chapter: Chapter) -> None:
    """A section may show one assertion as part of its code; more of them interrupt the reading."""
    for title in headings(chapter, 2):
        if title == "Exercises":
            continue
        cells = [cell for cell in shown(section(chapter, title)) if "nbval-check-output" not in notebooks.tags(cell)]
        asserting = [cell for cell in cells if re.search(r"(?m)^\s*assert ", cell.source)]
        assert len(asserting) <= 1, f"{title}: gather the assertions under 'What this section claims'"
