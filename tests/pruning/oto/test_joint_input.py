"""Joint training and pruning: input that cannot be used is named before any work starts."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from joint_setup import BASES, METHODS, X, chain, make
from torch import nn

import cdlib
from cdlib import CdlibError, data, models
from cdlib.pruning import dhspg, hesso


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1.0}, "target=1.0"),
        ({"target": 0.95}, "target=0.95 is 10 of 11 units, but each of the 2 groups keeps 1: give at most 0.818"),
        ({"start": -1}, "start=-1"),
        ({"steps": 0}, "steps=0"),
        ({"periods": 5}, "periods=5 is more than steps=4"),
        ({"min_width": 0}, "min_width=0"),
        ({"min_width": 4, "target": 0.5}, "keeps 4: give at most 0.272, or a smaller min_width"),
        ({"keep": ["0", "2"]}, "none is zero-invariant"),
        ({"method": dhspg, "penalty": 0}, "penalty=0"),
        ({"method": dhspg, "amplify": math.inf}, "amplify=inf"),
        ({"method": dhspg, "coefficient": 0.5}, "coefficient=0.5: give a number from 1"),
        ({"method": dhspg, "epsilon": 1.0}, "epsilon=1.0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        make(**options)


def test_a_model_without_prunable_groups() -> None:
    with pytest.raises(CdlibError, match="none is zero-invariant"):
        make(model=nn.Sequential(nn.Linear(3, 2)).double())


@pytest.mark.parametrize("method", METHODS)
def test_a_state_of_another_network_or_with_other_options_is_refused(method: str) -> None:
    make_it = METHODS[method]
    state = copy.deepcopy(make(make_it).state_dict())
    other = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    for optimizer in (make(make_it, model=other), make(make_it, steps=5), make(make_it, target=0.2)):
        with pytest.raises(CdlibError, match="this state is not of this"):
            optimizer.load_state_dict(state)
    with pytest.raises(CdlibError, match="None"):
        make(make_it).load_state_dict(torch.optim.SGD(chain().parameters(), lr=0.1).state_dict())
    another = make(hesso if method == "dhspg" else dhspg)
    with pytest.raises(CdlibError, match="this state is not of this"):
        another.load_state_dict(state)


@pytest.mark.parametrize("method", [hesso, dhspg])
def test_a_state_is_checked_before_anything_is_loaded(method: Any) -> None:
    def over(base: Any, model: nn.Module) -> Any:
        return method(model, cdlib.find_groups(model, X), base(model.parameters()), steps=4)

    sgd, adam = BASES["momentum"], BASES["adam"]
    state = over(sgd, chain()).state_dict()
    wide = nn.Sequential(*chain()[:4], nn.Linear(5, 3)).double()
    for optimizer, message in (
        (over(adam, chain()), "base of it: SGD, of this: Adam" if method is hesso else "options of it"),
        (over(sgd, wide), "shapes of it"),
    ):
        with pytest.raises(CdlibError, match=message):
            optimizer.load_state_dict(state)
    trained = chain()
    later = over(sgd, trained)
    for parameter in trained.parameters():
        parameter.grad = torch.ones_like(parameter)
    later.step()
    state, mine = later.state_dict(), over(sgd, chain())
    for name in {*state["group_sparse"]} - {"units", "options", "base", "shapes"}:
        for damage in ({}, {name: torch.zeros(3)}):
            own = {key: value for key, value in state["group_sparse"].items() if key != name}
            with pytest.raises(CdlibError, match="is damaged"):
                mine.load_state_dict({**state, "group_sparse": {**own, **damage}})
    for nothing in (None, 5, {}):
        with pytest.raises(CdlibError, match="is not of this"):
            mine.load_state_dict(nothing)
    assert mine.step_count == 0 and not mine.redundant.any() and not mine.state


@pytest.mark.parametrize("method", [hesso, dhspg])
def test_units_that_are_no_longer_zero_are_not_removed(method: Any) -> None:
    model = chain()
    optimizer = method(model, cdlib.find_groups(model, X), BASES["sgd"](model.parameters()), steps=2)
    for value in (1.0, 1.0, math.nan):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.step()
        if optimizer.step_count == 2:
            assert optimizer.drop()
    with pytest.raises(CdlibError, match="are not zero any more: the loss was no finite number"):
        optimizer.drop()


def test_one_is_not_put_over_another() -> None:
    model = chain()
    groups = cdlib.find_groups(model, X)
    with pytest.raises(CdlibError, match="base=HESSO prunes already: give the optimizer below it"):
        dhspg(
            model,
            groups,
            hesso(model, groups, BASES["sgd"](model.parameters()), steps=3),
            steps=3,
        )


def test_weights_that_are_no_numbers_are_not_ranked() -> None:
    model = chain()
    optimizer = hesso(model, cdlib.find_groups(model, X), BASES["sgd"](model.parameters()), steps=3)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    with pytest.raises(CdlibError, match="in step 1 weights or their moves are no finite numbers"):
        optimizer.step()


@pytest.mark.parametrize("base", [lambda p: torch.optim.LBFGS(p), lambda p: None, lambda p: "sgd"])
def test_a_base_that_cannot_be_built_on(base: Any) -> None:
    model = chain()
    with pytest.raises(CdlibError, match=r"base=(LBFGS|NoneType|str): give a torch optimizer"):
        hesso(model, cdlib.find_groups(model, X), base(model.parameters()), steps=3)


def test_masks_are_named_where_they_are_in_the_way() -> None:
    with pytest.raises(CdlibError, match="It has masks: call permanent first"):
        make(model=cdlib.pruning.unstructured(chain(), X))


def test_no_parameters_can_be_added_later() -> None:
    with pytest.raises(CdlibError, match="add them to the base"):
        make().add_param_group({"params": [nn.Parameter(torch.ones(1))]})


def test_training_that_is_too_short_is_refused_before_it_starts() -> None:
    dataset = data.load("digits")
    model = models.build("vgg_mini", 10, in_channels=1)
    groups = cdlib.find_groups(model, dataset.test.input(1))
    with pytest.raises(CdlibError, match="only 5"):
        cdlib.train.fit(
            model,
            dataset,
            cdlib.train.Recipe(epochs=1, batch_size=256),
            optimizer=lambda b: hesso(model, groups, b, steps=6),
            progress=False,
        )
