"""The command `study`: make the recorded runs of the comparison of pruning methods."""

from __future__ import annotations

from typing import Annotated

import typer

from cdlib.cli.options import Json


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
    from cdlib.cli import output as console
    from cdlib.study import sweep

    records = sweep(model, range(seeds), only=only or (), data=data, epochs=epochs)
    if as_json:
        console.print_json(records)
    else:
        print(f"{len(records)} runs are recorded; `cdlib results --experiment pruning` lists them.")
