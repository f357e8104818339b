"""The sweep over pruning methods: which runs the book's comparison consists of, and making those that are missing.

One run is `cdlib.study.methods`' business, keeping it `cdlib.study.runs`'s. The list is in the order of interest, so
that a sweep that is stopped has made the runs that matter most; started again, it goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cdlib.data import load
from cdlib.errors import CdlibError, check_choice
from cdlib.pruning import MODES, RESOURCES
from cdlib.study import store
from cdlib.study.methods import METHODS, prune_and_train
from cdlib.study.runs import busy, run
from cdlib.train import Recipe

EXPERIMENT = "pruning"

# The networks of the sweep, and how they are trained.
_SGD = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4}
RECIPES: dict[str, dict[str, Any]] = {
    "vgg_mini": _SGD,
    "resnet_mini": _SGD,
    "convnext_mini": {"optimizer": "adamw", "lr": 2e-3},
    "plain_cnn": {
        **{"optimizer": "sgd", "lr": 0.75, "momentum": 0.85, "weight_decay": 1.33e-3, "batch_size": 512},
        **{"norm_bias_lr": 64, "decay": "linear", "lr_start": 0.2, "lr_end": 0.07, "label_smoothing": 0.2},
        **{"ema": 0.99, "flips": "alternating", "shift": 2},
    },
}
# Networks whose blocks multiply their result by a parameter of this name: at zero, it switches them off.
SCALED = {"convnext_mini": "layer_scale"}
WARMUPS = {"plain_cnn": 0.23}  # shares of the epochs, where that is not one epoch
SHARES = (0.5, 0.7, 0.8, 0.9, 0.95)  # of the weights that unstructured pruning masks


def plans(model: str, *, data: str = "cifar10", epochs: int = 10, runs: int = 100) -> list[dict[str, Any]]:
    """Return the parameters of all runs of a network, one of `RECIPES`; a CdlibError for another, or without epochs.

    `data` is a name for `cdlib.data.load`, `runs` how many forward passes are timed. Where a method trains further than
    `epochs`, that takes four tenths of them at a tenth of the learning rate.
    """
    check_choice("model", model, RECIPES)
    recipe = {"epochs": epochs, "batch_size": 128, "precision": "bf16", "channels_last": True, **RECIPES[model]}
    Recipe(**recipe)  # raises before any work starts
    channels = load(data).train.images.shape[1]
    options = {} if channels == 3 else {"in_channels": channels}
    common = {"data": data, "model": model, "options": options, "recipe": recipe, "runs": runs}
    warm: dict[str, Any] = {}
    if share := WARMUPS.get(model):
        recipe["warmup_epochs"], warm = round(share * epochs, 2), {"warmup_epochs": round(share * _fewer(epochs), 2)}
    methods = _methods(epochs, {"epochs": _fewer(epochs), "lr": recipe["lr"] / 10, **warm}, recipe["lr"])
    if model in SCALED:
        methods.append({"name": "switched_off", "parameter": SCALED[model]})
    return [{**common, "method": method} for method in methods]


def sweep(
    model: str,
    seeds: Iterable[int],
    *,
    only: Iterable[str] = (),
    first: int | None = None,
    progress: bool = True,
    **options: Any,
) -> list[store.Record]:
    """Make the runs of a network that are not recorded yet, and return the records of all, old and new.

    Several processes may share the work: each leaves what another is at for later, and at the end waits for it.

    Parameters
    ----------
    model : str
        One of `RECIPES`.
    seeds : iterable of int
        All runs of the first seed come first.
    only : iterable of str, optional
        Names of methods; by default all.
    first : int, optional
        Only so many of the runs of `plans`, which come in the order of interest; by default all.
    progress : bool, default True
        Show a progress bar on standard error.
    **options
        Of `plans`.

    Raises
    ------
    CdlibError
        As `plans`, or if a method is unknown; at the end, if runs failed: the others were made nevertheless.
    """
    from tqdm import tqdm

    for name in (only := list(only)):
        check_choice("method", name, METHODS)
    wanted = [plan for plan in plans(model, **options)[:first] if not only or plan["method"]["name"] in only]
    todo = [(plan, seed) for seed in seeds for plan in wanted]
    if not todo:
        raise CdlibError("nothing to run: give at least one seed.")
    records: dict[int, store.Record] = {}
    failed: dict[int, CdlibError] = {}
    with tqdm(total=len(todo), unit="run", disable=not progress) as bar:
        while left := [index for index in range(len(todo)) if index not in {**records, **failed}]:
            index = next((i for i in left if not busy(EXPERIMENT, *todo[i])), left[0])
            plan, seed = todo[index]
            bar.set_postfix_str(_named(*todo[index]))
            try:
                records[index] = run(EXPERIMENT, prune_and_train, plan, seed=seed)
            except CdlibError as error:
                failed[index] = error
            bar.update()
    if failed:
        told = "".join(f"\n  {_named(*todo[index])}: {error}" for index, error in failed.items())
        raise CdlibError(f"{len(failed)} of {len(todo)} runs failed, the others are recorded:{told}")
    return [records[index] for index in range(len(todo))]


def _named(plan: dict[str, Any], seed: int) -> str:
    return f"{' '.join(map(str, plan['method'].values()))}, seed {seed}"


def _fewer(epochs: int) -> int:
    return max(1, round(0.4 * epochs))


def _methods(epochs: int, further: dict[str, Any], lr: float) -> list[dict[str, Any]]:
    phase = {"start_epochs": epochs // 10, "prune_epochs": max(1, epochs // 2)}

    def driven(target: float, name: str = "complexity_driven") -> list[dict[str, Any]]:
        return [{"name": name, "mode": mode, "target": target} for mode in MODES]

    def ranked(resource: str, target: float = 0.5, **changed: Any) -> dict[str, Any]:
        tuning = {**further, **changed}
        return {"name": "ranking", "target": target, "by": "l2", "resource": resource, "fine_tune": tuning}

    def dhspg(target: float, **options: Any) -> dict[str, Any]:
        return {"name": "dhspg", "target": target, **phase, **options}

    def joint(target: float) -> list[dict[str, Any]]:
        """Both, and the uniform width of as many parameters: (1 - s)^2 are left without a share s of all units."""
        return [
            {"name": "hesso", "target": target, **phase, "periods": 5},
            dhspg(target),
            {"name": "uniform_width", "mode": "PA", "target": round(1 - (1 - target) ** 2, 4)},
        ]

    def guarded(target: float) -> dict[str, Any]:
        """MA with a least width: without one it draws the groups of large images down to a single unit."""
        return {"name": "complexity_driven", "mode": "MA", "target": target, "min_width": 4}

    evenly, at_random = driven(0.5, "uniform_width"), driven(0.5, "random_draw")
    unstructured = [
        {"name": "unstructured", "by": by, "conv": share, "linear": share, "fine_tune": further}
        for share in SHARES
        for by in ("l1", "random")
    ]
    crossed = [
        {"name": "complexity_driven", "mode": mode, "target": 0.5, "stop_at": resource}
        for resource in RESOURCES
        for mode, own in MODES.items()
        if own != resource
    ]
    few = [plan for plan in unstructured if plan["conv"] in (0.8, 0.9)]
    equal_training = [{**plan, "budget": "dense"} for plan in (driven(0.5)[0], evenly[0], joint(0.5)[-1])]
    first = [
        {"name": "dense"},
        *driven(0.5),
        *evenly,
        at_random[0],
        ranked("params"),
        ranked("params", lr=lr),
        guarded(0.5),
        *joint(0.5),
        {"name": "dense", "fine_tune": further},
        {"name": "dense", "fine_tune": {**further, "lr": lr}},
        *few,
        *equal_training,
    ]
    tickets = [  # and what they are compared with: the weights as trained, trained as long
        *[{**few[2], "name": "ticket", **start} for start in ({"rewind": 0}, {"rewind": 1}, {"fresh": True})],
        {**few[2], "fine_tune": {}},
    ]
    for ticket in tickets[:-1]:
        del ticket["fine_tune"]
    second = [*driven(0.7), *driven(0.7, "uniform_width"), ranked("params", 0.7), *joint(0.7)]
    others = [
        *driven(0.3),
        guarded(0.7),
        *unstructured,
        *at_random[1:],
        *crossed,
        *[ranked(resource) for resource in RESOURCES[1:]],
        *[dhspg(target, penalty=1.0, min_width=4) for target in (0.5, 0.7)],
        {**joint(0.7)[-1], "budget": "dense"},
    ]
    return [*first, *second, *tickets, *(plan for plan in others if plan not in first)]
