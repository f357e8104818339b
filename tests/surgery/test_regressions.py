"""Networks on which groups or removal were wrong once, made as small as possible. Most came from test_properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import cdlib
from cdlib.surgery.attributes import Guesses
from cdlib.surgery.masked_reference import masked
from cdlib.surgery.removal import rewritten


class Between(nn.Module):
    """A convolution to some channels, something on them, and a linear layer that reads the means of what comes out."""

    def __init__(self, middle: Any, width: int = 8, out: int | None = None) -> None:
        super().__init__()
        self.a, self.middle, self.b = nn.Conv2d(3, width, 1), middle, nn.Linear(out or width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self.a(x)).flatten(2).mean(2))


def numbers(model: nn.Module) -> nn.Module:
    """The network in double precision and evaluation mode, with random parameters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.double().parameters():
            p.copy_(torch.randn(p.shape, dtype=p.dtype))
        for module in model.modules():  # weights that hooks compute
            for hook in module._forward_pre_hooks.values():
                hook(module, ())
    return model.eval()


IMAGE = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def apart(model: nn.Module, x: Any, drop: dict[str, list[int]]) -> float:
    """How far zeroing and removing some units are apart."""
    groups = cdlib.find_groups(model, x)
    inputs = x if isinstance(x, tuple) else (x,)
    with torch.no_grad():
        return (
            (cdlib.zero(model, groups, drop)(*inputs) - cdlib.remove(model, groups, drop)(*inputs)).abs().max().item()
        )


def turned(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.movedim(1, -1).unflatten(-1, (-1, 2)).contiguous()) * (0.6 + 0.8j)
    return torch.view_as_real(pairs).flatten(-2).movedim(-1, 1)


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


# What comes between the two layers, how many channels come out, and what group "a" must be: units, zero-invariant.
MIDDLES: dict[str, tuple[Callable[[Tensor], Tensor], int, int, bool]] = {
    "the first half times the sigmoid of the second": (lambda x: F.glu(x, 1), 4, 4, True),
    "frequencies of positions": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2, s=(4, 4)), 8, 8, True),
    "channels that become patches": (lambda x: F.fold(x.flatten(2)[..., :4], (4, 4), 2, stride=2), 2, 2, True),
    "pairs turned as complex numbers": (turned, 8, 4, True),
    "pixel shuffle by view": (shuffled, 2, 2, True),
    "means that come with deviations": (lambda x: torch.std_mean(x, (2, 3), keepdim=True)[1], 8, 8, True),
    "largest so far": (lambda x: x.cummax(2).values, 8, 8, True),
    "order of positions": (lambda x: x.sort(2).indices.double(), 8, 8, False),
    "logsigmoid, an operator with two results": (F.logsigmoid, 8, 8, False),
    "a choice by something that is not zero": (lambda x: torch.where(x.sigmoid() > 0.6, x, 0.3), 8, 8, False),
    "a border copied from the other side": (lambda x: F.pad(x, [1, 1, 1, 1], mode="circular"), 8, 8, True),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_operator(name: str) -> None:
    middle, out, units, zero_invariant = MIDDLES[name]
    model = numbers(Between(middle, out=out))
    group = cdlib.find_groups(model, IMAGE)["a"]
    assert (group.size, group.prunable, group.zero_invariant) == (units, True, zero_invariant), group.reason
    assert (apart(model, IMAGE, {"a": [1]}) < 1e-12) == zero_invariant


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "instance norm that keeps statistics": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "one group per channel": lambda: nn.GroupNorm(8, 8),
    "circular padding": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    model = numbers(Between(LAYERS[name]()))
    groups = cdlib.find_groups(model, IMAGE)
    last = next(g for g in groups if ("b.weight", 1) in g.tensors)
    assert last.size == 8 and last.zero_invariant, last.reason
    assert apart(model, IMAGE, {last.name: [0, 3, 7]}) < 1e-12
    assert not rewritten(cdlib.remove(model, groups, {last.name: [0, 3, 7]}))


def test_weight_norm_is_a_layer_whose_zeros_are_no_numbers() -> None:
    model = numbers(Between(parametrizations.weight_norm(nn.Conv2d(8, 8, 1))))
    groups = cdlib.find_groups(model, IMAGE)
    group = groups["middle.parametrizations.weight"]
    assert group.prunable and not group.zero_invariant and not groups["a"].zero_invariant
    small = cdlib.remove(model, groups, {group.name: [0, 1], "a": [2]})
    assert not rewritten(small)
    (expected,) = (masked(model, groups, {"a": [2]}),)
    assert (cdlib.remove(model, groups, {"a": [2]})(IMAGE) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("trained", [False, True])
def test_masks_of_torch_prune(trained: bool) -> None:
    """The weight is a plain attribute that autograd made: it cannot be copied as such."""
    model = Between(nn.Conv2d(8, 8, 1))
    prune.random_unstructured(model.middle, "weight", amount=0.3)
    with torch.set_grad_enabled(trained):
        numbers(model)(IMAGE)
    group = cdlib.find_groups(model, IMAGE)["middle"]
    assert group.stems == ("middle.weight_orig",)
    assert apart(model, IMAGE, {"middle": [1, 2], "a": [0]}) < 1e-12


class Queries(nn.Module):
    """Learnt tokens that look at the input; what they see is summed, or normalised and averaged."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.query, self.stem, self.head = nn.Parameter(torch.empty(1, 3, 4)), nn.Linear(2, 4), nn.Linear(4, 2)
        self.q, self.k, self.v = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.norm = nn.GroupNorm(1, 4) if normalised else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = F.scaled_dot_product_attention(self.q(self.query).expand(len(x), -1, -1), self.k(y), self.v(y))
        return self.head(z.sum(1) if self.norm is None else self.norm(z.transpose(1, 2)).mean(2))


@pytest.mark.parametrize("normalised", [False, True])
def test_learnt_tokens(normalised: bool) -> None:
    """A token of zeros still sees something; their number changes with any number of samples."""
    model, x = numbers(Queries(normalised)), torch.randn(3, 5, 2, dtype=torch.float64)
    groups = cdlib.find_groups(model, x)
    tokens = next(g for g in groups if ("query", 1) in g.tensors)
    assert not tokens.zero_invariant
    drop = {g.name: [0] for g in groups.prunable}
    small = cdlib.remove(model, groups, drop)
    assert (small(x) - masked(model, groups, drop)).abs().max() < 1e-12


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
            nn.Linear(16, 16),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c((y + self.b(y.flatten(2)).view_as(y)).mean((2, 3)))


def test_what_is_added_to_positions_stays() -> None:
    """It was frozen without a reason, which was taken for not frozen."""
    group = cdlib.find_groups(numbers(Positions()), IMAGE)["b"]
    assert not group.prunable and group.reason


def test_layers_of_unknown_operators_are_listed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.form, self.head = nn.Bilinear(3, 3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.form(x, x))

    group = cdlib.find_groups(Net().eval(), torch.zeros(1, 3))["form"]
    assert not group.prunable and "_trilinear" in group.reason


class Passes(nn.Module):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x


class Strict(nn.Module):
    """Code that does not follow, and a module that returns the first of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.passes = nn.Linear(3, 4), nn.Linear(4, 2), Passes()

    def forward(self, x: Tensor) -> Tensor:
        if (y := self.a(x)).shape[1] != 4:
            raise ValueError("4 channels, please")
        return self.passes(self.b(y), y)


def test_rewritten_module_in_training_with_a_module_that_passes_one_of_its_inputs() -> None:
    model, x = numbers(Strict()), torch.randn(2, 3, dtype=torch.float64)
    small = cdlib.remove(model, cdlib.find_groups(model, x), {"a": [1]})
    assert torch.equal(small.train()(x), small.eval()(x))


class Recurrent(nn.Module):
    """A network that cannot run without numbers, so that not all of its operators can be predicted."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.a, self.rnn = nn.Linear(2, 3), nn.GRU(3, 3, batch_first=True)
        self.b, self.middle, self.c = nn.Linear(3, 2), middle, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.middle(self.b(self.rnn(self.a(x))[0])))


class Kind(nn.Module):
    """A number that is as large as a width and means something else."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.scale = 2, nn.Parameter(torch.empty(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale if self.kind == 2 else x + 1


class PerWidth(nn.Module):
    """A scale computed from the width."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.shape[-1] ** -0.5


@pytest.mark.parametrize("middle", [nn.Identity, Kind, PerWidth])
@pytest.mark.parametrize("drop", [{"a": [1]}, {"b": [1]}, {"a": [0, 2], "b": [0]}])
def test_runs_that_need_numbers(middle: Callable[[], nn.Module], drop: dict[str, list[int]]) -> None:
    model, x = numbers(Recurrent(middle())), torch.randn(2, 4, 2, dtype=torch.float64)
    assert apart(model, x, drop) < 1e-12


def test_linear_layers_that_run_otherwise_when_their_input_is_contiguous() -> None:
    """One channel is contiguous however it was transposed, and then mm and add are addmm."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 2, 1), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).transpose(1, 2))

    model, x = numbers(Last()), torch.randn(2, 3, 5, dtype=torch.float64)
    assert apart(model, x, {"a": [1]}) < 1e-12


def test_transformer_layer_does_not_pass_by_a_rewritten_attention() -> None:
    """Without gradients, PyTorch's layer hands the weights of its attention to a fused kernel, if they look usual."""
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    model = numbers(nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 3))).eval()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    groups = cdlib.find_groups(model, x)
    drop = {group.name: [0] for group in groups.prunable if group.size > 1}
    small = cdlib.remove(model, groups, drop)
    assert "1.self_attn" in rewritten(small)
    with torch.no_grad():
        fused = small(x)
    assert torch.allclose(fused, small(x), rtol=1e-12)


class SplitInTwo(nn.Module):
    """A C2f block of YOLO: it keeps half a width, but no tensor."""

    def __init__(self, width: int, out: int, c: int) -> None:
        super().__init__()
        self.c, self.first, self.inner = c, nn.Conv2d(width, 2 * c, 1), nn.Conv2d(c, c, 3, padding=1)
        self.last = nn.Conv2d(3 * c, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.first(x).split((self.c, self.c), 1)
        return self.last(torch.cat([one, two, self.inner(two)], 1))


class Ghost(nn.Module):
    """A ghost module: half of the maps are made from the others, and of an odd number one is too many."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        half = -(-out // 2)
        self.out, self.first = out, nn.Conv2d(width, half, 1)
        self.cheap = nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return torch.cat([y, self.cheap(y).relu()], 1)[:, : self.out]


@pytest.mark.parametrize("units", [1, 2])
@pytest.mark.parametrize(
    "layers", [(SplitInTwo(8, 6, 4), nn.Conv2d(6, 2, 1)), (Ghost(8, 7), nn.BatchNorm2d(7), Ghost(7, 5), nn.ReLU())]
)
def test_numbers_of_modules_without_tensors_follow(layers: tuple[nn.Module, ...], units: int) -> None:
    model = numbers(nn.Sequential(nn.Conv2d(3, 8, 1), *layers))
    drop = {g.name: range(units) for g in cdlib.find_groups(model, IMAGE).prunable if g.size > units}
    groups = cdlib.find_groups(model, IMAGE)
    small = cdlib.remove(model, groups, drop)
    assert rewritten(small) == []
    larger = torch.cat([IMAGE, IMAGE], 2)
    assert (small(larger) - cdlib.zero(model, groups, drop)(larger)).abs().max() < 1e-12


def test_only_what_is_concerned_is_rewritten_when_the_next_layer_raises() -> None:
    """The slice takes all that is left, which PyTorch does not count as a slice, and the batch norm complains."""

    class Stubborn(Ghost):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).relu()
            return torch.cat([y, self.cheap(y).relu()], 1)[:, :7]

    model = numbers(nn.Sequential(nn.Conv2d(3, 8, 1), Stubborn(8, 7), nn.BatchNorm2d(7), nn.Conv2d(7, 2, 1)))
    assert rewritten(cdlib.remove(model, cdlib.find_groups(model, IMAGE), {"1.first": [0]})) == ["1"]
    assert apart(model, IMAGE, {"1.first": [0]}) < 1e-12


class Profiled(Between):
    def forward(self, x: Tensor) -> Tensor:
        with torch.profiler.record_function("all of it"):
            return super().forward(x)


class Halved(nn.Module):
    """Its code does not follow widths."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.profiler.record_function("halves"):
            return x.view(len(x), 8, 4, 4) * 2


@pytest.mark.parametrize("middle", [nn.ReLU(), Halved()])
def test_what_a_profiler_is_told_is_no_operator(middle: nn.Module) -> None:
    assert apart(numbers(Profiled(middle)), IMAGE, {"a": [1, 3]}) < 1e-12


def test_data_parallel_is_cut_like_any_network() -> None:
    model = numbers(nn.DataParallel(Between(nn.ReLU())))
    groups = cdlib.find_groups(model, IMAGE)
    small = cdlib.remove(model, groups, {"module.a": [1]})
    assert not rewritten(small) and isinstance(small, nn.DataParallel)
    assert (small(IMAGE) - cdlib.zero(model, groups, {"module.a": [1]})(IMAGE)).abs().max() < 1e-12


def test_the_search_for_numbers_ends_at_layers_of_pytorch() -> None:
    layer = nn.Linear(4, 4)  # adjusted to its tensors already: trying it again would never end
    assert not Guesses(layer)._change("", {4: 3})
    assert layer.in_features == layer.out_features == 4
