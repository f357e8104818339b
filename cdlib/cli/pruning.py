"""The commands `groups` and `prune`: which channels belong together, and cutting some out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import cdlib
from cdlib.cli import options
from cdlib.cli.options import Classes, Json, Model, Option, Shape, Weights
from cdlib.cli.output import print_groups, print_json, print_pruned
from cdlib.errors import CdlibError, check_choice, check_seed, check_share, check_whole

Keep = Annotated[
    list[str] | None, typer.Option("--keep", metavar="NAME", help="A module or parameter that stays whole; repeatable.")
]


def groups(
    model: Model,
    shape: Shape = None,
    classes: Classes = None,
    option: Option = None,
    weights: Weights = None,
    keep: Keep = None,
    as_json: Json = False,
) -> None:
    """Show which channels can only be removed together, and whether they can be."""
    network, example = options.network(model, shape, classes, option, weights)
    with options.status("finding the groups"):
        found = cdlib.find_groups(network, example, keep=keep or ())
    prunable = found.prunable
    kinds = {"prunable": prunable, "zero_invariant": [group for group in prunable if group.zero_invariant]}
    shares = {kind: cdlib.grouping.parameter_share(network, those) for kind, those in kinds.items()}
    keys = ("prunable", "zero_invariant", "reason", "stems")
    rows = [{"name": g.name, "units": g.size, **{key: getattr(g, key) for key in keys}} for g in found]
    facts = {"model": model, "input": list(example.shape[1:]), "share": shares, "groups": rows}
    print_json(facts) if as_json else print_groups(facts)


def prune(
    model: Model,
    ratio: Annotated[float, typer.Option(help="Share of the units of each group to remove, from 0 to below 1.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write, for example small.cdlib.")],
    saliency: Annotated[str, typer.Option(help="How units are ranked: l1, l2, bn or random.")] = "l2",
    round_to: Annotated[int, typer.Option(help="Keep widths at a multiple of this.")] = 1,
    shape: Shape = None,
    classes: Classes = None,
    option: Option = None,
    keep: Keep = None,
    weights: Weights = None,
    zero_invariant: Annotated[
        bool, typer.Option("--zero-invariant", help="Only groups that are zero-invariant.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of random weights and of the saliency random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Remove the least important units of every group, and save the smaller network."""
    import torch

    check_share("--ratio", ratio)
    check_seed(seed, "--seed")
    check_choice("saliency", saliency, [name for name in cdlib.pruning.MEASURES if name != "taylor"])
    check_whole("--round-to", round_to, 1)
    options.check_output(output, force, ".cdlib")
    torch.manual_seed(seed)
    network, example = options.network(model, shape, classes, option, weights)
    with options.status("finding the groups"):
        found = cdlib.find_groups(network, example, keep=keep or ())
    chosen = [group for group in found.prunable if group.zero_invariant or not zero_invariant]
    drop = found.check(cdlib.pruning.lowest(network, chosen, ratio, by=saliency, seed=seed), round_to)
    removed = {name: len(units) for name, units in drop.items()}
    if ratio and not any(removed.values()):
        raise CdlibError(_nothing(found, chosen, ratio, round_to))
    with options.status("removing the units and comparing every operator"):
        small = cdlib.remove(network, found, drop)
    with options.status(f"writing {output}"):
        cdlib.save(small, output)
        profiles = [cdlib.profile(each, example) for each in (network, small)]
    facts: dict[str, Any] = {
        "model": model,
        "input": list(example.shape[1:]),
        "file": output,
        "file_bytes": output.stat().st_size,
        "ratio": ratio,
        "saliency": saliency,
        "round_to": round_to,
        "groups": {group.name: {"units": group.size, "removed": removed.get(group.name, 0)} for group in found},
        "rewritten": cdlib.surgery.rewritten(small),
        **{when: profile.totals() for when, profile in zip(("before", "after"), profiles, strict=True)},
    }
    if not options.has_weights(model, weights):
        print(f"note: {model} had random weights: give --weights to prune a trained network", file=sys.stderr)
    print_json(facts) if as_json else print_pruned(facts)


def _nothing(found: Any, chosen: list[Any], ratio: float, round_to: int) -> str:
    if not chosen:
        return f"nothing can be removed: of {len(found)} groups none is prunable; `cdlib groups` says why."
    widest = max(group.size for group in chosen)
    return (
        f"--ratio {ratio} with --round-to {round_to} removes no unit of any group, the largest of which has {widest}: "
        "give a larger ratio or a smaller multiple."
    )
