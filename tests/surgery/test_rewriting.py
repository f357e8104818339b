"""Code that was written in place of modules does what they did: in training, in other types, saved, exported."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cdlib
from cdlib import CdlibError
from cdlib.surgery import Rewritten, rewritten


class Head(nn.Module):
    """Its code names a width; `run` is what becomes of the result."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.run = nn.Linear(3, 8), nn.Linear(8, 4), run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, self.b(self.a(x).view(-1, 8)))


def softmax_at_inference(m: nn.Module, y: Tensor) -> Tensor:
    return y if m.training else y.softmax(1)


def functional_dropout(m: nn.Module, y: Tensor) -> Tensor:
    return F.dropout(y, 0.5, m.training) * 3


def dropout(m: Any, y: Tensor) -> Any:
    return m.drop(y)


def norm(m: Any, y: Tensor) -> Any:
    return m.norm(y)


def statistics(m: Any, y: Tensor) -> Tensor:
    return F.batch_norm(y, m.norm.running_mean, m.norm.running_var, training=m.training)


def shuffled_in_training(m: Any, y: Tensor) -> Tensor:
    """Reads the cut width in training alone, by the number that it had."""
    z: Tensor = m.c(m.d(y).view(-1, 2, 8)[:, 1] * 2 if m.training else m.d(y)[:, 8:])
    return z


def attention_dropout(m: Any, y: Tensor) -> Tensor:
    heads = y.view(-1, 1, 2, 2)
    p = 0.5 if m.training else 0.0
    return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=p).flatten(1)


def other_constants(m: nn.Module, y: Tensor) -> Tensor:
    return y * torch.tensor([1.0, 2, 3, 4] if m.training else [4.0, 3, 2, 1], dtype=torch.float64)


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], dict[str, nn.Module]]]] = {
    "a branch": (softmax_at_inference, dict),
    "dropout that is a call": (functional_dropout, dict),
    "dropout that is a module": (dropout, lambda: {"drop": nn.Dropout(0.5)}),
    "statistics by a call": (statistics, lambda: {"norm": nn.BatchNorm1d(4)}),
    "statistics by a module": (norm, lambda: {"norm": nn.BatchNorm1d(4)}),
    "a width in training alone": (shuffled_in_training, lambda: {"d": nn.Linear(4, 16), "c": nn.Linear(8, 3)}),
    "dropout of attention": (attention_dropout, dict),
    "constants": (other_constants, dict),
}
X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def both(name: str, around: bool = False) -> tuple[Any, Any]:
    """A cut network, and the one of full size in which the units are zero."""
    torch.manual_seed(0)
    run, modules = CASES[name]
    model: nn.Module = Head(run, **modules()).double().eval()
    if around:
        model = nn.Sequential(nn.Linear(3, 3), model).double().eval()
    groups = cdlib.find_groups(model, X)
    drop = {g.name: [1] for g in groups.prunable}
    assert drop and all(g.zero_invariant for g in groups.prunable)
    small = cdlib.remove(model, groups, drop)
    assert rewritten(small) == ["1" if around else ""]
    return small, cdlib.zero(model, groups, drop)


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_both_modes_do_what_they_did(name: str, around: bool) -> None:
    small, zeroed = both(name, around)
    for mode in (False, True, False):
        found = []
        for model in (small, zeroed):
            model.train(mode)
            torch.manual_seed(3)
            found.append(model(X))
        assert (found[0] - found[1]).abs().max() < 1e-12
    for buffer, value in zeroed.named_buffers():
        assert torch.allclose(small.get_buffer(buffer), value, rtol=1e-12), "statistics move alike"


class Turns(nn.Module):
    """Called twice, with another constant each time."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x.view(-1, 8) * torch.tensor([1.0, 2][self.count % 2], dtype=x.dtype)


def test_a_module_whose_constants_are_others_at_each_call_is_not_rewritten_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.turns, self.b = nn.Linear(3, 8), Turns(), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.turns.count = 0
            return self.b(self.turns(self.turns(self.a(x)) + 1))

    model = Twice().double().eval()
    groups = cdlib.find_groups(model, X)
    small = cdlib.remove(model, groups, {"a": [1]})
    assert rewritten(small) == [""]
    with torch.no_grad():
        expected = cdlib.surgery.masked(model, groups, {"a": [1]})
    assert (small(X) - expected).abs().max() < 1e-12


def test_settings_of_submodules_still_count() -> None:
    small, _ = both("dropout that is a module")
    small.train()
    assert not torch.equal(small(X), small(X))
    small.drop.p = 0.0
    assert torch.equal(small(X), small(X))


def test_code_can_be_read() -> None:
    small, _ = both("a branch")
    lines = small.code.splitlines()
    assert lines[0] == "def forward(self, samples, x):"
    assert "self.a(x)" in small.code and "aten.reshape.default(a, [samples, 7])" in small.code
    assert "softmax" in small.code and "softmax" not in small.training_code


class Refuses(Head):
    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        if self.training and target is None:
            raise ValueError("in training mode, targets must be given")
        return super().forward(x)


def test_a_module_that_cannot_be_recorded_in_training_says_so() -> None:
    model = Refuses(softmax_at_inference).double()
    groups = cdlib.find_groups(model, X)
    for small in (cdlib.remove(model, groups, {"a": [1]}), cdlib.remove(model.eval(), groups, {"a": [1]})):
        if small.training:
            with pytest.raises(CdlibError, match="ValueError: in training mode, targets must be given"):
                small(X)
        with pytest.raises(CdlibError, match="Refuses was rewritten for inference when it was cut"):
            small.train()
        assert torch.allclose(small.eval()(X).sum(1), torch.ones(6, dtype=torch.float64))


class Cache(nn.Module):
    """Makes tensors of its own, of the type of what it gets, and names a width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape[0], 8, dtype=x.dtype)
        return self.b(torch.cat([y, self.a(x)], 1)[:, 8:] + y).to(x.dtype)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_types_follow(kind: torch.dtype) -> None:
    model = Cache().double().eval()
    groups = cdlib.find_groups(model, X)
    small = cdlib.remove(model, groups, {"a": [1]})
    assert rewritten(small) == [""]
    expected, found = cdlib.zero(model, groups, {"a": [1]})(X), small.to(kind)(X.to(kind))
    assert found.dtype == kind
    assert (found.double() - expected).abs().max() < 0.05


def upcast(m: Any, y: Tensor) -> Tensor:
    return (y.float() * 300).square().sum(1, keepdim=True).sqrt().to(y.dtype) + y


def upcast_in_training(m: Any, y: Tensor) -> Tensor:
    return upcast(m, y) if m.training else y * 2


def fixed_constant(m: Any, y: Tensor) -> Tensor:
    return (y * torch.tensor([1.0, 2.0, 3.0, 4.0])).to(m.b.weight.dtype)


@pytest.mark.parametrize("before", [torch.float32, torch.float16])
@pytest.mark.parametrize("run", [upcast, upcast_in_training, fixed_constant])
def test_code_that_changes_types_keeps_to_its_own(run: Callable[[Any, Tensor], Tensor], before: torch.dtype) -> None:
    model, x = Head(run).to(before).eval(), X.to(before)
    groups = cdlib.find_groups(model, x)
    small, zeroed = (f(model, groups, {"a": [1]}) for f in (cdlib.remove, cdlib.zero))
    assert rewritten(small) == [""]
    torch.testing.assert_close(small(x), zeroed(x), rtol=1e-2, atol=1e-2)
    other = torch.float32 if before == torch.float16 else torch.float16
    kept, names = copy.deepcopy(small), [str(t).removeprefix("torch.") for t in (before, other)]
    small.to(other)
    if before == torch.float16 and run is not fixed_constant:  # all casts were recorded
        torch.testing.assert_close(small(X.float()), zeroed.float()(X.float()), rtol=1e-2, atol=1e-2)
        return
    message = rf"rewritten in \[{names[0]}, {names[0]}\] and got \[{names[1]}, {names[1]}\], in which its code"
    with pytest.raises(CdlibError, match=message):
        small(x.to(other))
    assert torch.equal(kept(x), small.to(before)(x)) or before == torch.float32


@pytest.mark.parametrize("name", CASES)
def test_pickled_copied_and_traced(name: str) -> None:
    small, _ = both(name, around=True)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    same = torch.load(file, weights_only=False)
    expected = small(X)
    for other in (same, copy.deepcopy(small), torch.jit.trace(small, (X,)), torch.export.export(small, (X,)).module()):
        assert torch.equal(other(X), expected)
    for mode in (same, copy.deepcopy(small), small):
        mode.train()
        torch.manual_seed(5)
        expected = mode(X)
        torch.manual_seed(5)
        assert torch.equal(mode(X), expected) or "statistics" in name
    assert isinstance(same[1], Rewritten) and same[1].training_code == small[1].training_code


def test_it_is_cut_again() -> None:
    for name in CASES:
        small, _ = both(name, around=True)
        groups = cdlib.find_groups(small, X)
        drop = {g.name: [0] for g in groups.prunable}
        again, zeroed = cdlib.remove(small, groups, drop), cdlib.zero(small, groups, drop)
        for mode in (False, True):
            found = []
            for model in (again, zeroed):
                torch.manual_seed(3)
                found.append(model.train(mode)(X))
            assert (found[0] - found[1]).abs().max() < 1e-12, name


def test_submodules_inside_get_masks() -> None:
    small, _ = both("a branch")
    sparse = cdlib.pruning.unstructured(small, X, linear=0.5)
    assert int((sparse.a.weight == 0).sum()) == 10
    assert torch.equal(cdlib.pruning.permanent(sparse)(X), sparse(X))
    assert not torch.equal(sparse(X), small(X))


class Pair(NamedTuple):
    one: Tensor
    other: Tensor


class Fixed(nn.Module):
    """Code that asserts a width; `run` is what it does."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        assert x.shape[1] == 8
        return self.run(self, x)


class Joined(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.inner(x)
        return one * other


def keywords(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.d["pass"]["in"](m.d["lambda"](x))
    return y


def named(m: Any, x: Tensor) -> Pair:
    return Pair(x.tanh(), x.sin())


def relu(m: Any, x: Tensor) -> Tensor:
    return x.relu()


def dropped(m: Any, x: Tensor) -> Tensor:
    return F.dropout(m.inner(x), 0.5, m.training)


def within(block: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), block, nn.Conv2d(8, 4, 1)).double().eval(), torch.randn(
        2, 3, 6, 6
    ).double()


@pytest.mark.parametrize(
    "block",
    [
        Fixed(keywords, d=nn.ModuleDict({"lambda": nn.Conv2d(8, 8, 1), "pass": nn.ModuleDict({"in": nn.Tanh()})})),
        Joined(Fixed(named)),
        Fixed(dropped, inner=Fixed(relu)),
    ],
    ids=["names that are keywords", "a named tuple", "one inside another"],
)
def test_modules_of_any_make_are_rewritten(block: nn.Module) -> None:
    net, x = within(block)
    groups = cdlib.find_groups(net, x)
    small, zeroed = (f(net, groups, {"0": [1, 3]}) for f in (cdlib.remove, cdlib.zero))
    assert rewritten(small)
    torch.testing.assert_close(small(x), zeroed(x))
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), small(x))
    assert small.train()(x).shape == (2, 4, 4, 4)


def test_numbers_of_the_input_are_no_constants() -> None:
    net, x = within(Fixed(lambda m, x: x * torch.tensor(x.abs().max().tolist())))
    with pytest.raises(CdlibError, match="may have been made of the numbers of its input"):
        cdlib.remove(net, cdlib.find_groups(net, x), {"0": [1]})


def test_a_number_read_out_of_a_weight_is_no_constant() -> None:
    net, x = within(Fixed(lambda m, x: x * m.scale.item()))
    net[1].scale = nn.Parameter(torch.tensor(2.0))
    with pytest.raises(CdlibError, match="a number that it reads out of a tensor"):
        cdlib.remove(net, cdlib.find_groups(net, x), {"0": [1]})


def test_what_depends_on_the_number_of_samples_otherwise_is_not_guessed() -> None:
    net, x = within(Fixed(lambda m, x: x + x[:4].sum()))
    with pytest.raises(CdlibError, match="has a size that does not grow with the number of samples"):
        cdlib.remove(net, cdlib.find_groups(net, x), {"0": [1]})


class Called(nn.Module):
    """Its code names a width, and takes more than a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, shift: Tensor, *, scale: float = 1.0) -> Tensor:
        y: Tensor = self.b(self.a(x).view(-1, 8) * scale)
        return y + 2 * self.a(shift).sum()


def called(*args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Called().double().eval()
    groups = cdlib.find_groups(model, args, kwargs=kwargs)
    small = cdlib.remove(model, groups, {"a": [1]})
    assert rewritten(small) == [""]
    return small, cdlib.zero(model, groups, {"a": [1]})


def test_arguments_by_name_keep_their_meaning() -> None:
    small, zeroed = called(X, shift=X * 2, scale=3.0)
    expected = zeroed(X, X - 1, scale=3.0)
    for found in (small(X, X - 1, scale=3.0), small(X, scale=3.0, shift=X - 1), small(shift=X - 1, x=X, scale=3.0)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    plain, zeroed = called(X, X)
    torch.testing.assert_close(plain(X, shift=X, scale=1.0), zeroed(X, X))  # the default, given


def test_other_numbers_than_those_recorded_are_an_error() -> None:
    small, _ = called(X, shift=X * 2, scale=3.0)
    for kwargs in ({"scale": 2.0}, {"scale": X}, {}):
        with pytest.raises(CdlibError, match="rewritten for the arguments a tensor, a tensor, 3.0 and got a tensor, a"):
            small(X, X, **kwargs)


def test_one_tensor_in_two_places_is_not_two() -> None:
    small, zeroed = called(X, X)
    torch.testing.assert_close(small(X, X.clone()), zeroed(X, X))
    with pytest.raises(CdlibError, match="one tensor as its inputs 1 and 2, and got two"):
        small(X, X + 1)


def test_forward_hooks_still_run() -> None:
    net, x = within(Fixed(relu))
    seen: list[Tensor] = []
    net[1].register_forward_hook(lambda m, args, y: seen.append(y))
    groups = cdlib.find_groups(net, x)
    small = cdlib.remove(net, groups, {"0": [1, 3]})
    assert rewritten(small) == ["1"]
    seen.clear()
    small(x)
    assert [tuple(y.shape) for y in seen] == [(2, 6, 4, 4)]
    net[1].register_forward_hook(lambda m, args, y: y * 2)
    small, zeroed = (f(net, groups, {"0": [1, 3]}) for f in (cdlib.remove, cdlib.zero))
    torch.testing.assert_close(small(x), zeroed(x))


def without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        fixed = x * m.scale
    with torch.inference_mode():
        ones = torch.ones(())
    with torch.set_grad_enabled(False):
        fixed = m.inner(fixed * ones)
        with torch.enable_grad():
            fixed = fixed * m.scale
    return x + fixed


class Sign(torch.autograd.Function):
    """Its gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients


class Straight(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Sign.apply(x)
        return y


@pytest.mark.parametrize("training", [False, True])
def test_what_has_no_gradient_has_none(training: bool) -> None:
    net, x = within(Fixed(without_gradients, inner=nn.Conv2d(8, 8, 1)))
    net[1].scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
    groups = cdlib.find_groups(net, x)
    found = []
    for model in (f(net, groups, {"0": [1, 3]}).train(training) for f in (cdlib.remove, cdlib.zero)):
        model(x).square().sum().backward()
        assert torch.is_grad_enabled() and model[1].inner.weight.grad is None
        found.append([model[0].weight.grad, model[1].scale.grad, model[2].weight.grad])
    assert rewritten(net) == [] and found[0][0].shape == (6, 3, 3, 3)
    kept = [0, 2, 4, 5, 6, 7]
    for small, full in zip(found[0], (found[1][0][kept], found[1][1], found[1][2][:, kept]), strict=True):
        torch.testing.assert_close(small, full)


def test_gradients_are_on_again_after_an_error() -> None:
    net, x = within(Fixed(without_gradients, inner=nn.Conv2d(8, 8, 1)))
    net[1].scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
    small = cdlib.remove(net, cdlib.find_groups(net, x), {"0": [1, 3]})
    small[1].inner.bias = nn.Parameter(torch.zeros(1))
    with pytest.raises(RuntimeError):
        small(x)
    assert torch.is_grad_enabled()


def test_gradients_that_operators_do_not_show_are_kept_or_refused() -> None:
    net, x = within(Fixed(lambda m, x: m.inner(x), inner=Straight()))  # called as it is
    small = cdlib.remove(net, cdlib.find_groups(net, x), {"0": [1]})
    assert rewritten(small) == ["1"]
    small(x).sum().backward()
    assert small[0].weight.grad.abs().sum() > 0
    net, x = within(Fixed(lambda m, x: Sign.apply(x)))
    with pytest.raises(CdlibError, match="the autograd.Function Sign, whose gradients its operators do not show"):
        cdlib.remove(net, cdlib.find_groups(net, x), {"0": [1]})


class Counts(nn.Module):
    """Keeps something between calls, in `how` it does."""

    def __init__(self, how: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.how, self.count, self.state = how, 0, SimpleNamespace(seen=[])
        self.register_buffer("running", torch.zeros((), dtype=torch.float64))
        self.count_orig = nn.Parameter(torch.zeros(1))  # as if a mask made `count` of it, which none does

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 8
        self.shape = x.shape
        if self.training:
            self.how(self, x)
        return x * (1 + self.count + self.running)


def counted(m: Any, x: Tensor) -> None:
    m.count += 1


def replaced(m: Any, x: Tensor) -> None:
    m.running = 0.9 * m.running + x.detach().mean()


def listed(m: Any, x: Tensor) -> None:
    m.state.seen.append(x)


@pytest.mark.parametrize(
    ("how", "names"), [(counted, "self.count"), (replaced, "self.running"), (listed, "self.state")]
)
def test_what_is_kept_between_calls_is_not_frozen(how: Callable[[Any, Tensor], Any], names: str) -> None:
    net, x = within(Counts(how))
    small = cdlib.remove(net, cdlib.find_groups(net, x), {"0": [1]})
    assert rewritten(small) == ["1"]
    with pytest.raises(CdlibError, match=f"could not be for training .it keeps something for later in {names}.:"):
        small.train()
    assert rewritten(cdlib.remove(net.train(), cdlib.find_groups(net, x), {"0": [1]})) == ["1"]


def test_what_is_written_in_place_goes_on() -> None:
    net, x = within(Counts(lambda m, x: m.running.add_(1)))
    small = cdlib.remove(net, cdlib.find_groups(net, x), {"0": [1]}).train()
    first = small(x) - small[2].bias[:, None, None]
    torch.testing.assert_close(small(x) - small[2].bias[:, None, None], first * 1.5)  # 1 + 1 becomes 1 + 2


class Draws(nn.Module):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if self.training and self.draw() < 0.5 else 3)


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["Python", "NumPy"])
def test_random_numbers_of_python_are_not_frozen(draw: Callable[[], float]) -> None:
    net, x = within(Fixed(lambda m, x: x.relu() * (2 if m.training and draw() < 0.5 else 3)))
    small = cdlib.remove(net, cdlib.find_groups(net, x), {"0": [1]})
    with pytest.raises(CdlibError, match="could not be for training .the network draws random numbers of Python"):
        small.train()
    net, x = within(Fixed(lambda m, x: x * draw()))
    with pytest.raises(CdlibError, match="draws random numbers of Python or NumPy"):
        cdlib.remove(net, cdlib.find_groups(net, x), {"0": [1]})
    net, x = within(Fixed(lambda m, x: m.inner(x.relu()), inner=Draws(draw)))
    small = cdlib.remove(net, cdlib.find_groups(net, x), {"0": [1]}).train()  # the module that draws is called
    assert len({float(small(x).detach().sum()) for _ in range(20)}) == 2


class Keeps(nn.Module):
    """Its code reads the width that it keeps, in training mode as `run` does."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.run = nn.Linear(3, 8), nn.Linear(8, 4), 8, run

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(-1, self.c)
        z: Tensor = self.b(self.run(self, y) if self.training else y)
        return z


def viewed_again(m: Any, y: Tensor) -> Tensor:
    return F.dropout(y.relu().reshape(-1, m.c), 0.5)


def scaled(m: Any, y: Tensor) -> Tensor:
    return y * m.c**-0.5


def needs_more(m: Any, y: Tensor) -> Tensor:
    raise ValueError("no target")


@pytest.mark.parametrize(("run", "code"), [(viewed_again, []), (scaled, ["0"]), (needs_more, ["0"])])
def test_kept_numbers_that_mean_something_else_in_training_are_rewritten(
    run: Callable[[Any, Tensor], Tensor], code: list[str]
) -> None:
    net = nn.Sequential(Keeps(run)).double().eval()
    groups = cdlib.find_groups(net, X)
    small, zeroed = (f(net, groups, {"0.a": [1]}) for f in (cdlib.remove, cdlib.zero))
    assert rewritten(small) == code and small[0].c == (8 if code else 7)
    torch.testing.assert_close(small(X), zeroed(X))
    if run is scaled:
        torch.testing.assert_close(small.train()(X), zeroed.train()(X))
    elif run is needs_more:
        with pytest.raises(CdlibError, match="Keeps was rewritten for inference .* .ValueError: no target."):
            small.train()
