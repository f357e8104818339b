"""Groups are found once and passed on: for which networks they hold, and that nothing is captured twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import conv
from torch import Tensor, nn
from torch.nn.utils import prune

import cdlib
from cdlib import CdlibError, find_groups
from cdlib.graph import tracing
from cdlib.pruning import Meter, complexity_driven, dhspg, hesso, plan, random_draw, ranking, uniform_width
from cdlib.surgery import check_exact, masked, rewritten

IMAGE = torch.zeros(1, 3, 8, 8)
DROP = {"0": [1]}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4), nn.ReLU(), conv(4, 2))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


TAKERS: dict[str, Callable[[nn.Module, Any], object]] = {
    "remove": lambda model, groups: cdlib.remove(model, groups, DROP),
    "zero": lambda model, groups: cdlib.zero(model, groups, DROP),
    "masked": lambda model, groups: masked(model, groups, DROP),
    "check_exact": lambda model, groups: check_exact(model, groups, DROP),
    "Meter": Meter,
    "plan": plan,
    "complexity_driven": complexity_driven,
    "uniform_width": uniform_width,
    "random_draw": random_draw,
    "ranking": ranking,
    "hesso": lambda model, groups: hesso(model, groups, sgd(network()), steps=2),
    "dhspg": lambda model, groups: dhspg(model, groups, sgd(network()), steps=2),
}
OTHERS: dict[str, tuple[Callable[[nn.Sequential], nn.Module], str]] = {
    "another": (lambda net: nn.Sequential(conv(3, 6)), r"1.weight was \[6\] float32 .*, and is not there here"),
    "as it was before a cut": (
        lambda net: cdlib.remove(net, find_groups(net, IMAGE), DROP),
        r"0.weight was \[6, 3, 1, 1\] float32 in the Sequential .*, and is \[5, 3, 1, 1\] float32 here",
    ),
    "with a mask": (
        lambda net: nn.Sequential(prune.identity(net[0], "weight"), *net[1:]),
        r"0.weight was .*, and is not there here",
    ),
    "of another type": (lambda net: net.double(), r"0.weight was .* float32 .*, and is .* float64 here"),
    "no network": (lambda net: "net", "model is 'str'"),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("taker", TAKERS)
def test_groups_of_another_network_are_one_error(taker: str, other: str) -> None:
    groups = find_groups(network(), IMAGE)
    make, message = OTHERS[other]
    with pytest.raises(CdlibError, match=message) as error:
        TAKERS[taker](make(network()), groups)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("taker", TAKERS)
def test_an_input_in_the_place_of_groups_is_named(taker: str) -> None:
    with pytest.raises(CdlibError, match=r"groups is 'Tensor': give what cdlib.find_groups\(model, ...\) returns"):
        TAKERS[taker](network(), IMAGE)


@pytest.mark.parametrize("taker", TAKERS)
def test_nothing_is_captured_that_need_not_be(taker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    groups, captured, right = find_groups(model, IMAGE), [], tracing.run

    def counting(*args: Any, **kwargs: Any) -> Any:
        captured.append(args)
        return right(*args, **kwargs)

    for module in ("graph.tracing", "grouping.preconditions", "surgery.removal"):
        monkeypatch.setattr(f"cdlib.{module}.run", counting)
    if taker in ("hesso", "dhspg"):
        {"hesso": hesso, "dhspg": dhspg}[taker](model, groups, sgd(model), steps=2)
    else:
        TAKERS[taker](model, groups)
    # a cut is run once to compare it, and the full network on two samples; `check_exact` makes two, of a copy
    cuts = {"zero": 0, "masked": 0, "Meter": 0, "plan": 0, "hesso": 0, "dhspg": 0, "check_exact": 2}.get(taker, 1)
    assert len(captured) == 2 * cuts + (taker == "check_exact")


def test_a_copy_and_a_network_trained_since_take_the_same_groups() -> None:
    model, x = network(), torch.randn(4, 3, 8, 8)
    groups = find_groups(model, x)
    for net in (copy.deepcopy(model), model.train()):
        optimizer = sgd(net)
        net(x).square().mean().backward()
        optimizer.step()
        small, zeroed = cdlib.remove(net, groups, DROP).eval(), cdlib.zero(net, groups, DROP).eval()
        torch.testing.assert_close(small(x), zeroed(x))
        assert torch.equal(small[0].weight, net[0].weight[[0, 2, 3, 4, 5]])  # type: ignore[index]


def test_numbers_of_weights_in_the_code_may_change_in_training() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.scale = conv(3, 4), conv(4, 2), nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * self.scale.item())

    model, x = Scaled(), torch.randn(2, 3, 4, 4)
    groups = find_groups(model, x)
    model.scale.data.fill_(3.0)
    small = cdlib.remove(model, groups, {"a": [1]})
    assert rewritten(small) == []
    torch.testing.assert_close(small(x), cdlib.zero(model, groups, {"a": [1]})(x))


class Named(nn.Module):
    """A network that takes an argument by name, and whose code does not follow the width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        y = self.norm(self.a(x) * mask)
        return self.b(y * y.shape[-1] ** -0.5)


def test_arguments_by_name_are_remembered(tmp_path: Any) -> None:
    model, x, mask = Named(), torch.randn(3, 4, 5), torch.rand(3, 4, 1)
    groups = find_groups(model, x, kwargs={"mask": mask})
    drop = {"a": [0, 3]}
    small = cdlib.remove(model, groups, drop)
    torch.testing.assert_close(small(x, mask=mask), masked(model, groups, drop))
    one = masked(model, groups, drop, inputs=x[1:2], kwargs={"mask": mask[1:2]})
    torch.testing.assert_close(small(x, mask=mask)[1:2], one)
    assert check_exact(model, groups, drop).masked < 1e-9  # type: ignore[operator]
    again = cdlib.remove(small, find_groups(small, x, kwargs={"mask": mask}), {"a": [1]})
    assert again.a.out_features == 5
    cdlib.save(small, tmp_path / "named.cdlib")
    torch.testing.assert_close(cdlib.load(tmp_path / "named.cdlib", Named())(x, mask=mask), small(x, mask=mask))
    assert ranking(model, groups, 0.5, rounds=2)(x, mask=mask).shape == (3, 4, 3)
    least = complexity_driven(model, groups, "MA", 0.3)
    assert (
        cdlib.profile(least, x, kwargs={"mask": mask}).activation_bytes
        <= 0.7 * Meter(model, groups).totals["activation_bytes"]
    )


def test_what_is_kept_stays_kept_in_later_rounds() -> None:
    model = network()
    small = ranking(model, find_groups(model, IMAGE, keep=["0"]), 0.5, rounds=2, scope="layer")
    assert (small[0].out_channels, small[3].out_channels) == (6, 2)  # type: ignore[index]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_example_follows_the_network_to_another_device() -> None:
    model = network()
    groups = find_groups(model, IMAGE)
    small = cdlib.remove(model.cuda(), groups, DROP)
    assert small(IMAGE.cuda()).shape[1] == 2
