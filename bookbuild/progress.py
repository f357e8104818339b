"""Shows on standard error what runs, what is done and what failed: moving on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import TaskID

    from bookbuild.chapters import Chapter
    from bookbuild.execution import Result


class Progress:
    """A display of chapters being run, to be used in a ``with`` statement.

    Parameters
    ----------
    wanted : bool
        Show anything at all.
    """

    def __init__(self, wanted: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._console = Console(stderr=True, quiet=not wanted)
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("cells"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not (wanted and self._console.is_terminal),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, running: Iterable[tuple[Chapter, int, int]], waiting: int) -> None:
        """Show the chapters that run, each with its cells done and in all, and the number that wait."""
        for chapter, done, cells in running:
            if chapter.name not in self._tasks:
                self._tasks[chapter.name] = self._bars.add_task(f"{chapter.number} {chapter.title}", total=cells)
                if not self._console.is_terminal:
                    self._line(f"{chapter.number} {chapter.title}: runs, {waiting} waiting")
            self._bars.update(self._tasks[chapter.name], completed=done)

    def done(self, result: Result) -> None:
        """Say what became of a chapter."""
        chapter = result.chapter
        if chapter.name in self._tasks:
            self._bars.remove_task(self._tasks.pop(chapter.name))
        if result.error:
            self._line(
                f"{chapter.number} {chapter.title}: FAILED after {result.seconds:.1f} s: {result.error}", "bold red"
            )
        elif result.cached:
            self._line(f"{chapter.number} {chapter.title}: unchanged, kept")
        else:
            self._line(f"{chapter.number} {chapter.title}: done in {result.seconds:.1f} s", "green")

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
