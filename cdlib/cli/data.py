"""The commands `chapters`, `data` and `results`: run chapters, look after data, list recorded results."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from cdlib.cli.options import Json, Settings
from cdlib.errors import check_choice

DataName = Annotated[str, typer.Argument(help="digits, cifar10, cifar100 or folder:PATH.")]

chapters_app = typer.Typer(help="List or run the chapters of the book.", no_args_is_help=True)
data_app = typer.Typer(help="Find, fetch or check a data set.", no_args_is_help=True)


@chapters_app.command("list")
def _chapters_list(as_json: Json = False) -> None:
    """List the chapters with their parameters."""
    from bookbuild import chapters
    from cdlib.cli import output as console

    found, profiles = chapters.find(), chapters.profiles()
    if as_json:
        keys = ("number", "name", "title", "parameters")
        rows = [{key: getattr(chapter, key) for key in keys} for chapter in found]
        console.print_json({"profiles": profiles, "chapters": rows})
        return
    table = [(c.number, c.title, ", ".join(f"{key}={value}" for key, value in c.parameters.items())) for c in found]
    console.print_table(["", "chapter", "parameters (quick)"], table)
    print(f"profiles: {', '.join(profiles)}")


@chapters_app.command("run")
def _chapters_run(
    numbers: Annotated[list[str] | None, typer.Argument(help="Numbers of chapters; all by default.")] = None,
    profile: Annotated[str, typer.Option(help="The values to run them with.")] = "quick",
    parameter: Annotated[
        Settings, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A value of your own.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Chapters at a time.")] = 2,
    as_json: Json = False,
) -> None:
    """Run chapters; what has not changed since it last ran is kept. Exit code 1 if one fails."""
    from bookbuild import chapters
    from cdlib.cli import arguments
    from cdlib.cli import output as console

    found = chapters.run(numbers, profile=profile, parameters=arguments.pairs("-p", parameter), jobs=jobs)
    if as_json:
        keys = ("path", "seconds", "cached", "parameters", "error")
        rows = [{"number": item.chapter.number, **{key: getattr(item, key) for key in keys}} for item in found]
        console.print_json({"profile": profile, "chapters": rows})
    else:
        table = [(item.chapter.number, _verdict(item), f"{item.seconds:.1f} s", item.path) for item in found]
        console.print_table(["", "chapter", "time", "notebook"], table)
    if any(item.error for item in found):
        raise typer.Exit(1)


@data_app.command("where")
def _data_where(name: DataName, as_json: Json = False) -> None:
    """Say where a data set is read from, or where it will be put."""
    from cdlib import data
    from cdlib.cli import output as console

    place = data.where(name)
    console.print_json({"name": name, "where": place, "exists": place.exists()}) if as_json else print(place)


@data_app.command("fetch")
def _data_fetch(name: DataName, as_json: Json = False) -> None:
    """Download what is missing, and make a data set ready for use without a network."""
    from cdlib import data
    from cdlib.cli import output as console

    place = data.fetch(name)
    console.print_json({"name": name, "where": place}) if as_json else print(place)


@data_app.command("check")
def _data_check(name: DataName, as_json: Json = False) -> None:
    """Read a whole data set without the network and say what it holds."""
    from cdlib import data
    from cdlib.cli import output as console

    found = data.check(name)
    if as_json:
        console.print_json(found)
        return
    for key, value in found.items():
        print(f"{key:12} {console.times(value) if key == 'shape' else value}")


def results(
    experiment: Annotated[str | None, typer.Option(help="Only this experiment.")] = None, as_json: Json = False
) -> None:
    """List the recorded runs of the study."""
    from cdlib.cli import output as console
    from cdlib.study import store

    frame = store.load()
    if experiment is not None:
        check_choice("experiment", experiment, set(frame["experiment"]))
        frame = store.load(experiment=experiment)
    if as_json:
        console.print_json(json.loads(frame.reset_index().to_json(orient="records", double_precision=15)))
    elif frame.empty:
        print(f"no records in {store.folder()}")
    else:
        console.print_frame(frame.reset_index().dropna(axis="columns", how="all"))


def _verdict(result: Any) -> str:
    return f"failed: {result.error}" if result.error else "unchanged" if result.cached else "done"
