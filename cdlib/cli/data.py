"""The commands `data` and `results`: look after data, list recorded results."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cdlib.cli.options import Json
from cdlib.errors import check_choice

DataName = Annotated[str, typer.Argument(help="digits, cifar10, cifar100 or folder:PATH.")]

data_app = typer.Typer(help="Find, fetch or check a data set.", no_args_is_help=True)


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
    from cdlib.study import folder, load

    frame = load()
    if experiment is not None:
        check_choice("experiment", experiment, set(frame["experiment"]))
        frame = load(experiment=experiment)
    if as_json:
        console.print_json(json.loads(frame.reset_index().to_json(orient="records", double_precision=15)))
    elif frame.empty:
        print(f"no records in {folder()}")
    else:
        console.print_frame(frame.reset_index().dropna(axis="columns", how="all"))
