"""The commands `study` and `results`: make the recorded runs of the comparison of pruning methods, and list runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import cdlib
from cdlib.cli import output
from cdlib.cli.options import Json
from cdlib.errors import check_choice, check_whole


def study(
    model: Annotated[str, typer.Argument(help="vgg_mini, resnet_mini or convnext_mini.")],
    seeds: Annotated[int, typer.Option(help="Make the runs of seeds 0, 1, ... up to this many.")] = 1,
    data: Annotated[
        str, typer.Option(help="A data set; `cdlib data where NAME` says where it is looked for.")
    ] = "cifar10",
    epochs: Annotated[int, typer.Option(help="Of training each network.")] = 10,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="METHOD", help="Only this method; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train and prune a network by every method, and record each run; what is recorded is skipped.

    Stop it with Ctrl-C and start it again whenever you like; started several times, the processes share the work.
    """
    check_whole("--seeds", seeds, 1, 1000)
    records = cdlib.study.sweep(model, range(seeds), only=only or (), data=data, epochs=epochs)
    if as_json:
        output.print_json(records)
    else:
        output.say(f"{len(records)} runs are recorded; `cdlib results --experiment pruning` lists them.")


def repeat(
    key: Annotated[str, typer.Argument(help="Of a record, or how it begins; `cdlib results` lists them.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Another folder, for the new record.")],
    as_json: Json = False,
) -> None:
    """Make a recorded run again, and set what comes out beside what was recorded.

    Stopped and started again, it goes on. The code is that of now: check out the record's commit for the code of then.
    """
    table = cdlib.study.repeat(key, out)
    output.print_json(table.to_dict("index")) if as_json else output.print_frame(table.reset_index(names="metric"))


def results(
    experiment: Annotated[str | None, typer.Option(help="Only this experiment.")] = None, as_json: Json = False
) -> None:
    """List the recorded runs of the study."""
    frame = cdlib.study.load()
    if experiment is not None:
        check_choice("experiment", experiment, set(frame["experiment"]))
        frame = cdlib.study.load(experiment=experiment)
    if as_json:
        output.print_json(json.loads(frame.reset_index().to_json(orient="records", double_precision=15)))
    elif frame.empty:
        output.say(f"no records in {cdlib.study.folder()}")
    else:
        output.print_frame(frame.reset_index().dropna(axis="columns", how="all"))
