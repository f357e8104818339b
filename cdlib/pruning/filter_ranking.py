"""Ranked filter pruning: the second stage of train, prune, fine-tune.

Filters of a trained network are ranked by a measure of `cdlib.pruning.saliency`, and the last in rank are removed with
whatever belongs to them, at once or in rounds with training between them (Li et al. 2017, arXiv:1608.08710; Liu et
al. 2017, arXiv:1708.06519; Molchanov et al. 2019, arXiv:1906.10771). Training is left to `cdlib.train`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from cdlib.data import Split
from cdlib.errors import CdlibError, check_choice, check_seed, check_whole
from cdlib.grouping import Groups, check_groups, find_again
from cdlib.pruning.costs import Meter
from cdlib.pruning.layer_widths import evenly
from cdlib.pruning.saliency import MEASURES, scores, with_gradients
from cdlib.pruning.targets import UNITS, Draw, Draws, Goal, Order

SCOPES = ("global", "layer")
_RELATIVE = ("l1", "l2")  # a sum over more elements is larger: only its ratio to the group's mean can be compared


def ranking(
    model: nn.Module,
    groups: Groups,
    target: float = 0.5,
    *,
    by: str = "l2",
    scope: str = "global",
    resource: str = UNITS,
    rounds: int = 1,
    between: Callable[[nn.Module], object] | None = None,
    data: Split | None = None,
    seed: int = 0,
    min_width: int = 1,
    round_to: int = 1,
) -> nn.Module:
    """Return a trained network without the units that are last in rank; it keeps its weights, to be fine-tuned.

    Parameters
    ----------
    model : nn.Module
        Any network; it is not touched.
    groups : Groups
        What `cdlib.find_groups` returned for it.
    target : float, default 0.5
        The share of `resource` to remove, from 0 to below 1; the last unit removed is the one that reaches it.
    by : str, default "l2"
        The measure: "l1", "l2", "bn", "taylor" or "random", see `cdlib.pruning.scores`.
    scope : {"global", "layer"}, default "global"
        Whether all units are ranked together, or every group loses the same share of its own. Globally, "l1" and "l2"
        are divided by their mean over the group, since a group whose units have more weights has larger ones; the
        others are compared as they are. In later rounds that mean is of the units left, which are the stronger ones, so
        groups that were cut look weaker and are cut again: give `min_width`, or rank by layer.
    resource : {"units", "params", "macs", "activation_bytes"}, default "units"
        What the target is a share of: the units of prunable groups, or a total of `cdlib.profile`.
    rounds : int, default 1
        Reach the target in this many rounds, each of which removes the same amount and ranks anew.
    between : callable, optional
        Called with the smaller network after every round but the last, to train it in place.
    data : Split, optional
        Images and labels for "taylor", for example a few hundred of the training split.
    seed : int, default 0
        Of "random".
    min_width, round_to
        As for `cdlib.pruning.complexity_driven`.

    Raises
    ------
    CdlibError
        If an option is out of range, a prunable group cannot be ranked so (name it in `keep` of `find_groups`), or
        no widths reach the target; or as `cdlib.remove`.
    """
    check_groups(groups, model)
    check_choice("saliency", by, MEASURES)
    check_choice("scope", scope, SCOPES)
    if not (isinstance(data, Split) if by == "taylor" else data is None):
        what = "needs data: give a Split of images and labels" if by == "taylor" else "needs no data: leave it out"
        raise CdlibError(f"by={by!r} {what}.")
    if between is not None and not callable(between):
        raise CdlibError(f"between={between!r} cannot be called: give a function of a network.")
    check_whole("rounds", rounds, 1)
    check_seed(seed)
    goal = Goal(target, resource, 1, min_width, round_to)
    total: int | None = None
    for done in range(1, rounds + 1):
        order, draw = _ranked(with_gradients(model, data) if data else model, groups, by, scope, seed)
        if done == 1 < rounds:
            Draws(model, groups, order, draw, goal).check()
        draws = Draws(model, groups, order, draw, replace(goal, target=target * done / rounds), total)
        model, total = draws.cut(), draws.total
        if done < rounds:
            if between:
                between(model)
            groups = find_again(model, groups)
    return model


def _ranked(model: nn.Module, groups: Groups, by: str, scope: str, seed: int) -> tuple[Order, Draw]:
    """The units of each group from the lowest score upwards, and what draws the group that loses the next one."""
    order, ladder = dict[str, list[int]](), dict[str, list[float]]()
    for group in groups.prunable:
        found = scores(model, group, by, seed=seed).double().cpu()
        if by in _RELATIVE and found.any():
            found = found / found.mean()
        ranked, units = torch.sort(found, stable=True)
        order[group.name], ladder[group.name] = units.tolist(), ranked.tolist()

    def lowest(meter: Meter, names: list[str]) -> str:
        return min(names, key=lambda name: ladder[name][len(ladder[name]) - meter.kept[name]])

    return order, lowest if scope == "global" else evenly
