"""What a capture must see, and that it leaves the network alone."""

from __future__ import annotations

import random
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cdlib
from cdlib.graph import capture


class Functional(nn.Module):
    """Functional calls, a bare parameter, a shared module, in-place operators, two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.shared = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = F.conv2d(x, self.kernel) * self.scale
        z = self.shared(F.relu_(self.shared(z)))
        return z, z + y


def inputs(n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3, 8, 8), torch.randn(n, 4, 6, 6)


def test_sees_functional_calls_bare_parameters_shared_modules_in_place_operators_and_several_inputs() -> None:
    graph = capture(Functional(), inputs())
    names = [op.name for op in graph.ops]
    assert names == ["convolution", "mul", "convolution", "relu_", "convolution", "add"]
    assert [op.module for op in graph.ops] == ["", "", "shared", "", "shared", ""]
    assert graph.ops[2].call != graph.ops[4].call
    assert graph.ops[0].args[1].name == "kernel" and graph.ops[1].args[1].name == "scale"
    assert graph.ops[3].outputs[0] is graph.ops[3].args[0], "an in-place operator returns what it was given"
    assert [v.shape for v in graph.inputs] == [(1, 3, 8, 8), (1, 4, 6, 6)]
    assert [v.shape for v in graph.outputs] == [(1, 4, 6, 6), (1, 4, 6, 6)]
    assert graph.outputs[0] is graph.ops[4].outputs[0] and graph.outputs[1] is graph.ops[5].outputs[0]


def test_a_view_shares_the_storage_and_the_name_of_its_base() -> None:
    graph = capture(nn.Linear(6, 2), torch.randn(3, 6))
    product = graph.ops[-1]
    weight = product.args[2]
    assert product.name == "addmm" and weight.name == "weight" and weight.shape == (6, 2)
    assert weight.storage == graph.ops[0].args[0].storage


def test_runs_on_shapes_alone_where_it_can_and_on_numbers_where_it_must() -> None:
    class DependsOnNumbers(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0].sum() * x if x.sum() > 0 else -x

    assert capture(Functional(), inputs()).on_meta
    graph = capture(DependsOnNumbers(), torch.ones(1, 3))
    assert not graph.on_meta and graph.ops[-1].name == "mul"


def test_numbers_made_by_the_network_itself_do_not_need_a_real_run() -> None:
    class Positions(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            steps = torch.arange(x.shape[-1])
            return x[..., : int(steps.max())] + steps[:-1]

    graph = capture(Positions(), torch.randn(1, 5))
    assert graph.on_meta and graph.outputs[0].shape == (1, 4)


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_network_as_it_was(training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU(inplace=True)).train(training)
    model[1].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    rng = torch.get_rng_state()
    x = torch.randn(2, 3, 8, 8)
    torch.set_rng_state(rng)
    kept = x.clone()
    cdlib.profile(model, x)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(x, kept) and torch.equal(torch.get_rng_state(), rng)
    assert all(p.requires_grad and p.grad is None and p.device.type == "cpu" for p in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled() and torch.is_grad_enabled()


@pytest.mark.parametrize("on_meta", [True, False])
def test_undoes_what_a_forward_changes(on_meta: bool) -> None:
    """Caches, also in plain objects, counters, replaced buffers, random numbers, and an input that is overwritten."""

    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))
            self.register_buffer("last", torch.zeros(2))
            self.cache: dict[str, torch.Tensor] = {}
            self.seen = None
            self.kept = SimpleNamespace(last=None, inner=[SimpleNamespace(queue=deque([1]))])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not on_meta:
                assert x.sum() > 0
            self.steps += 1
            self.cache["x"] = self.seen = self.kept.last = x
            self.kept.inner[0].queue.append(x)
            self.kept.inner[0].step = random.random() + np.random.rand()
            self.last = x[0]
            return x.mul_(2) + torch.rand(2)

    model, x, rng, python = Changes(), torch.ones(3, 2), torch.get_rng_state(), random.getstate()
    assert capture(model, x).on_meta == on_meta
    assert model.steps == 0 and model.cache == {} and model.seen is None
    inner = SimpleNamespace(queue=deque([1]))
    assert model.kept == SimpleNamespace(last=None, inner=[inner]) and random.getstate() == python
    assert torch.equal(model.last, torch.zeros(2)) and "last" in dict(model.named_buffers())
    assert torch.equal(x, torch.ones(3, 2)) and torch.equal(torch.get_rng_state(), rng)
    model(x)


def test_leaves_the_network_as_it_was_when_it_raises() -> None:
    class Raises(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("nothing here")

    model = Raises()
    attention = F.scaled_dot_product_attention
    with pytest.raises(cdlib.CdlibError, match="Raises cannot run on an input of shape.*KeyError: 'nothing here'"):
        capture(model, torch.ones(1, 2))
    assert model.training and F.scaled_dot_product_attention is attention and torch.is_grad_enabled()
    capture(nn.Identity(), torch.ones(1, 2))  # no hook and no mode is left behind


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.randn(1, 4, 8, 8), r"shape \(1, 4, 8, 8\)"),
        ((), "pass a tensor"),
        ("3x8x8", "'str'; pass a tensor"),
        (torch.randn(0, 3, 8, 8), "holds no sample"),
    ],
)
def test_refuses_what_the_network_cannot_run_on(example: object, message: str) -> None:
    with pytest.raises(cdlib.CdlibError, match=message) as caught:
        capture(nn.Conv2d(3, 4, 3), example)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_network() -> None:
    with pytest.raises(cdlib.CdlibError, match="not a torch.nn.Module"):
        cdlib.profile(torch.relu, torch.ones(1, 2))  # type: ignore[arg-type]


class Named(nn.Module):
    """Takes a tensor by name, a dictionary, a nest, a number and None."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: dict[str, torch.Tensor], scale: float, *, bias: list[Any], mask: object = None) -> Any:
        assert mask is None
        return self.linear(x["x"]) * scale + bias[0][1]


def test_arguments_may_be_nested_and_given_by_name() -> None:
    x, bias = torch.randn(3, 4), torch.randn(3, 6)
    graph = capture(Named(), ({"x": x}, 2.5), kwargs={"bias": [(None, bias)], "mask": None})
    assert [v.shape for v in graph.inputs] == [(1, 4), (1, 6)] and graph.outputs[0].shape == (1, 6)
    assert graph.calls[-1].inputs[1]["bias"][0][1] is graph.inputs[1]
    assert capture(nn.Linear(4, 6), (), kwargs={"input": x}).outputs[0].shape == (1, 6)
    with pytest.raises(cdlib.CdlibError, match="kwargs is 'list'; pass a dict"):
        capture(Named(), x, kwargs=[bias])  # type: ignore[arg-type]
    with pytest.raises(cdlib.CdlibError, match=r"those by name in kwargs"):
        capture(Named(), {"x": x})  # type: ignore[arg-type]


def test_a_tensor_that_is_resized_in_place_is_another_value() -> None:
    class Resizes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.mul(x, 2, out=x.new_empty(0)).unsqueeze_(0) + 1

    graph = capture(Resizes(), torch.ones(2, 3))
    product, wide, add = graph.ops[-3:]
    assert [op.name for op in graph.ops[-3:]] == ["mul", "unsqueeze_", "add"] and graph.on_meta
    assert product.kwargs["out"].shape == (0,) and product.outputs[0].shape == (1, 3)
    assert wide.inputs == product.outputs and add.inputs == wide.outputs and wide.outputs[0].shape == (1, 1, 3)
    assert wide.outputs[0].storage == product.outputs[0].storage != product.kwargs["out"].storage


def test_autocast_around_a_profile_applies_and_around_a_capture_does_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))
    x = torch.zeros(1, 3, 8, 8)
    macs = cdlib.profile(model, x).macs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            assert [cdlib.graph.capture(model, x, autocast=cast).outputs[0].dtype for cast in (False, True)] == [
                torch.float32,
                torch.bfloat16,
            ]
            inside = cdlib.profile(model, x)
            assert inside.macs == macs and inside.totals()["params"] == 4 * 4 + 5 * 5
            # the cast of the input, two tensors of 4 channels and one of 5, two bytes a number
            assert inside.totals()["activation_bytes"] == 64 * 2 * (3 + 4 + 4 + 5)


def test_distances_to_the_input_under_autocast_have_the_dtype_of_a_real_run() -> None:
    class Loss(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.mse_loss(x.bfloat16(), x.bfloat16())  # autocast computes it in float32

    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.zeros(2, 3)
        assert cdlib.graph.capture(Loss(), x, autocast=True).outputs[0].dtype == Loss()(x).dtype == torch.float32


def test_a_network_whose_user_put_hooks_on_it_runs_on_numbers_and_those_of_pytorch_do_not_matter() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    torch.nn.utils.prune.random_unstructured(model[0], "weight", 0.5)
    x = torch.zeros(1, 3, 8, 8)
    assert cdlib.graph.capture(model, x).on_meta
    seen: list[torch.Tensor] = []
    hook = model[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    graph = cdlib.graph.capture(model, x)
    assert not graph.on_meta and not graph.follows_numbers and [t.is_meta for t in seen] == [False]
    hook.remove()
    assert cdlib.graph.capture(model, x).on_meta
    model.register_forward_hook(lambda module, args, out: out[out > 0])
    assert cdlib.graph.capture(model, x).follows_numbers


def test_parts_that_are_compiled_run_as_they_were_written_and_the_compiler_is_left_alone() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    net = nn.Sequential(torch.compile(inner, backend=backend), nn.Conv2d(8, 4, 3))  # type: ignore[arg-type]
    found = capture(net, torch.zeros(1, 3, 8, 8))
    assert [op.name for op in found.ops] == ["convolution", "relu", "convolution"]
    assert not compiled
    net(torch.zeros(1, 3, 8, 8))
    assert compiled
