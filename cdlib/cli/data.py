"""The commands `data`: say where a data set is, fetch it, check it."""

from __future__ import annotations

from typing import Annotated

import typer

import cdlib
from cdlib.cli import output
from cdlib.cli.options import Json

DataName = Annotated[str, typer.Argument(help="digits, cifar10, cifar100 or folder:PATH.")]


def where(name: DataName, as_json: Json = False) -> None:
    """Say where a data set is read from, or where it will be put."""
    place = cdlib.data.where(name)
    output.print_json({"name": name, "where": place, "exists": place.exists()}) if as_json else output.say(place)


def fetch(name: DataName, as_json: Json = False) -> None:
    """Download what is missing, and make a data set ready for use without a network."""
    place = cdlib.data.fetch(name)
    output.print_json({"name": name, "where": place}) if as_json else output.say(place)


def check(name: DataName, as_json: Json = False) -> None:
    """Read a whole data set without the network and say what it holds."""
    found = cdlib.data.check(name)
    if as_json:
        output.print_json(found)
        return
    for key, value in found.items():
        output.say(f"{key:12} {output.times(value) if key == 'shape' else value}")
