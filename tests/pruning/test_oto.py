"""Joint training and pruning, against a plain transcription of the published rules, and what it promises at the end."""

from __future__ import annotations

import copy
import io
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cdlib
from cdlib import CdlibError, data, models
from cdlib.pruning import dhspg, hesso
from cdlib.pruning.joint import GroupSparse
from cdlib.pruning.oto import DHSPG, HESSO

X = torch.zeros(1, 3, dtype=torch.float64)
METHODS = {"hesso": hesso, "dhspg": dhspg}
BASES: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}
GROUPS = {"0": ("0.weight", "0.bias"), "2": ("2.weight", "2.bias")}


def chain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    return nn.Sequential(*layers).double()


# ---------------------------------------------------- the rules, in NumPy, a unit at a time


def gradient(name: str, x: np.ndarray, t: int) -> np.ndarray:
    """A gradient that depends on weights and step, so that any deviation grows."""
    noise = np.random.default_rng([t, len(name), ord(name[0])]).normal(size=x.shape)
    return 0.5 * x + noise


class NumpyBase:
    """Directions d of SGD, with momentum, and of Adam with coupled and AdamW with decoupled weight decay."""

    def __init__(self, kind: str) -> None:
        self.kind, self.state = kind, dict[str, Any]()
        self.lr = {"sgd": 0.05, "momentum": 0.02, "adam": 0.01, "adamw": 0.02}[kind]

    def direction(self, name: str, x: np.ndarray, g: np.ndarray, t: int) -> np.ndarray:
        if self.kind == "sgd":
            return g
        if self.kind == "momentum":
            g = g + 0.01 * x
            self.state[name] = 0.9 * self.state[name] + g if name in self.state else g
            return self.state[name]
        m, v = self.state.get(name, (0 * g, 0 * g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        self.state[name] = m, v
        step = (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        return step + (0.1 * x if self.kind == "adamw" else 0)


class Transcription:
    """The published algorithms over the two groups of `chain`."""

    def __init__(self, kind: str, weights: dict[str, np.ndarray], wanted: int, start: int, steps: int) -> None:
        self.base, self.w, self.wanted, self.start, self.steps = NumpyBase(kind), weights, wanted, start, steps
        self.units = [(g, i) for g, names in GROUPS.items() for i in range(len(weights[names[0]]))]
        self.redundant: list[tuple[str, int]] = []
        self.gone: list[tuple[str, int]] = []

    def vector(self, of: dict[str, np.ndarray], unit: tuple[str, int]) -> np.ndarray:
        return np.concatenate([np.atleast_1d(of[name][unit[1]]).ravel() for name in GROUPS[unit[0]]])

    def assign(self, unit: tuple[str, int], values: np.ndarray) -> None:
        at = 0
        for name in GROUPS[unit[0]]:
            size = self.w[name][unit[1]].size
            self.w[name][unit[1]] = values[at : at + size].reshape(self.w[name][unit[1]].shape)
            at += size

    def take_lowest(self, scores: dict[tuple[str, int], float], count: int) -> list[tuple[str, int]]:
        free = [u for u in self.units if u not in self.redundant]
        best = {g: max((u for u in free if u[0] == g), key=lambda u: scores[u]) for g in GROUPS}
        return sorted((u for u in free if u not in best.values()), key=lambda u: scores[u])[:count]

    def step(self, t: int) -> None:
        grads = {name: gradient(name, x, t) for name, x in self.w.items()}
        d = {name: self.base.direction(name, x, grads[name], t) for name, x in self.w.items()}
        old = {name: x.copy() for name, x in self.w.items()}
        for name in self.w:
            self.w[name] = old[name] - self.base.lr * d[name]
        self.prune(t, old, d)
        for unit in self.gone:
            self.assign(unit, 0 * self.vector(self.w, unit))

    def prune(self, t: int, old: dict[str, np.ndarray], d: dict[str, np.ndarray]) -> None:
        raise NotImplementedError


def norm(values: Any) -> float:
    return float(np.sqrt(sum(value * value for value in values)))


class NumpyHesso(Transcription):
    periods = 2

    def prune(self, t: int, old: dict[str, np.ndarray], d: dict[str, np.ndarray]) -> None:
        length = self.steps // self.periods
        k = t - self.start
        if k < 0 or k >= length * self.periods:
            return
        if k % length == 0:
            self.gone = list(self.redundant)
            raw = {}
            for unit in self.units:
                x, v = self.vector(old, unit), self.vector(d, unit)
                cosine = x @ v / (norm(x) + 1e-8) / (norm(v) + 1e-8)
                raw[unit] = [norm(x), norm(x) / len(x), cosine + 1, abs(x @ v), (x @ v) ** 2 / 2]
            sums = [norm(values[c] for values in raw.values()) + 1e-8 for c in range(5)]
            scores = {unit: sum(v / s for v, s in zip(values, sums, strict=True)) / 5 for unit, values in raw.items()}
            last = k // length == self.periods - 1
            count = self.wanted - len(self.redundant) if last else self.wanted // self.periods
            self.redundant += self.take_lowest(scores, count)
        for unit in self.redundant:
            if unit not in self.gone:
                j = k % length
                self.assign(unit, self.vector(self.w, unit) * (length - j - 1) / (length - j))
        if k % length == length - 1:
            self.gone = list(self.redundant)


class NumpyDhspg(Transcription):
    def __init__(self, *args: Any, penalty: float, amplify: float, coefficient: float, epsilon: float) -> None:
        super().__init__(*args)
        self.rule, self.epsilon, self.cases = (penalty, amplify, coefficient), epsilon, set[str]()

    def prune(self, t: int, old: dict[str, np.ndarray], d: dict[str, np.ndarray]) -> None:
        k = t - self.start
        if k < 0 or k >= self.steps:
            return
        if k == 0:
            cosines, sizes = {}, {}
            for unit in self.units:
                x, v = self.vector(old, unit), self.vector(d, unit)
                cosines[unit] = (-x) @ (-v) / (norm(x) * norm(v))
                sizes[unit] = 1 / (norm(x) / len(x) + 1e-6)
            one, other = norm(cosines.values()), norm(sizes.values())
            scores = {u: -0.5 * cosines[u] / one - 0.5 * sizes[u] / other for u in self.units}
            self.redundant = self.take_lowest(scores, self.wanted)
        penalty, amplify, coefficient = self.rule
        for unit in self.redundant:
            if unit in self.gone:
                continue
            x, v, y = self.vector(old, unit), self.vector(d, unit), self.vector(self.w, unit)
            strength, case = penalty, "towards zero"
            if x @ v < 0:
                lower, upper = -(x @ v) / norm(x), -(norm(v) ** 2) * norm(x) / (x @ v)
                strength, case = min(max(amplify * lower, penalty), penalty * coefficient), "away"
                if strength >= upper:
                    strength, case = (lower + upper) / 2, "no descent"
            self.cases.add(case)
            y = y - self.base.lr * strength * x / (norm(x) + 1e-8)
            self.assign(unit, y)
            if y @ x < self.epsilon * norm(x) ** 2:
                self.gone.append(unit)
        if k == self.steps - 1:
            self.gone = list(self.redundant)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("method", ["hesso", "dhspg"])
def test_every_step_is_that_of_the_published_rule(method: str, kind: str) -> None:
    model = chain()
    names = dict(model.named_parameters())
    weights = {name: p.detach().numpy().copy() for name, p in names.items()}
    if method == "hesso":
        optimizer: GroupSparse = hesso(model, X, BASES[kind](model.parameters()), 0.6, start=3, steps=13, periods=2)
        rule: Transcription = NumpyHesso(kind, weights, 6, 3, 13)
    else:
        own = {"penalty": 1.0, "amplify": 5.0, "coefficient": 10.0, "epsilon": 0.1 if kind == "sgd" else 0.9}
        optimizer = dhspg(model, X, BASES[kind](model.parameters()), 0.6, start=3, steps=40, **own)
        rule = NumpyDhspg(kind, weights, 6, 3, 40, **own)
    early = 0
    for t in range(46):
        for name, p in names.items():
            p.grad = torch.from_numpy(gradient(name, p.detach().numpy(), t))
        optimizer.step()
        rule.step(t)
        for name, p in names.items():
            np.testing.assert_allclose(p.detach().numpy(), rule.w[name], rtol=1e-9, atol=1e-12, err_msg=f"{name}, {t}")
        found = {(group, unit) for group, units in optimizer.drop().items() for unit in units}
        assert found == set(rule.gone)
        early += method == "dhspg" and 0 < len(found) < 6
    assert len(rule.gone) == 6
    if isinstance(rule, NumpyDhspg):
        assert early, "no unit was projected by the half-space step"
        assert rule.cases == {"towards zero", "away", "no descent"}


def test_without_a_target_the_base_is_all_there_is() -> None:
    trained = []
    for wrap in (True, False):
        model = chain()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        if wrap:
            optimizer = hesso(model, X, optimizer, 0.0, steps=4)
        for t in range(6):
            optimizer.zero_grad()
            model(torch.full((2, 3), t + 1.0).double()).square().sum().backward()
            optimizer.step()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*trained)


def test_a_closure_is_called_with_gradients_and_schedulers_set_the_rate() -> None:
    model = chain()
    optimizer = hesso(model, X, torch.optim.SGD(model.parameters(), lr=1.0), 0.5, steps=4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3).double()).square().sum()
        loss.backward()
        return loss

    before = model[4].weight.detach().clone()
    assert optimizer.step(closure) > 0
    torch.testing.assert_close(before - model[4].weight.detach(), model[4].weight.grad)
    schedule.step()
    assert optimizer.base.param_groups[0]["lr"] == pytest.approx(0.1)


# ---------------------------------------------------- what it promises


def train(
    model: nn.Module, optimizer: Any, steps: int, x: torch.Tensor, first: int = 0, net: Any = None
) -> torch.Tensor:
    """Some steps on random images; returns all tensors as one."""
    model.train()
    for t in range(first, first + steps):
        torch.manual_seed(t)
        for group in optimizer.param_groups:
            group["lr"] = 0.02 / (1 + t % 100)  # of all processes the same
        images, labels = torch.randn(4, *x.shape[1:], dtype=x.dtype), torch.randint(0, 10, (4,))
        optimizer.zero_grad()
        F.cross_entropy((net or model)(images), labels).backward()
        optimizer.step()
    return torch.cat([t.detach().flatten().double() for t in model.state_dict().values()])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["vgg_mini", "resnet_mini", "mobilenet_mini", "convnext_mini"])
def test_the_target_is_met_exactly_zeros_stay_and_the_cut_network_computes_the_same(method: str, name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, 10, in_channels=1).double()
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    optimizer = METHODS[method](model, x, base, 0.53, start=1, steps=4)
    train(model, optimizer, 5, x)
    drop = optimizer.drop()
    wanted = int(0.53 * optimizer.units.count)
    assert sum(map(len, drop.values())) == wanted == optimizer.wanted
    train(model, optimizer, 2, x, first=5)
    assert optimizer.drop() == drop
    groups = cdlib.find_groups(model, x)
    for group, units in drop.items():
        assert groups[group].zero_invariant and len(units) < groups[group].size
        for tensor, dim in groups[group].own:
            index = torch.from_numpy(groups[group].indices(units, (tensor, dim)))
            assert not model.get_parameter(tensor).index_select(dim, index).any()
    small = cdlib.remove(model, x, drop)
    images = torch.randn(8, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        full, cut = model.eval()(images), small.eval()(images)
    assert (full - cut).abs().max() <= 1e-9 * full.abs().max()
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())


def test_of_a_convnext_only_the_widths_of_the_mlps_shrink() -> None:
    model = models.build("convnext_mini", 10)
    optimizer = hesso(model, torch.zeros(1, 3, 32, 32), torch.optim.AdamW(model.parameters()), 0.7, steps=1)
    hidden = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features > 10}
    wide = {name: m.out_features for name, m in hidden.items() if m.out_features > m.in_features}
    assert optimizer.units.sizes == wide and len(wide) == 6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [1, 3, 6, 9])
def test_it_resumes_bit_for_bit(method: str, stop: int) -> None:
    x = torch.zeros(1, 1, 8, 8)

    def fresh() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = models.build("resnet_mini", 10, in_channels=1)
        base = torch.optim.AdamW(model.parameters(), lr=1e-2)
        options = {"periods": 2} if method == "hesso" else {}
        return model, METHODS[method](model, x, base, 0.5, start=2, steps=6, **options)

    model, optimizer = fresh()
    whole = train(model, optimizer, 10, x)
    model, optimizer = fresh()
    train(model, optimizer, stop, x)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    model, optimizer = fresh()
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    assert torch.equal(whole, train(model, optimizer, 10 - stop, x, first=stop))


@pytest.mark.parametrize("method", METHODS)
def test_training_of_the_package_takes_it_and_resumes_it(method: str, tmp_path: Path) -> None:
    dataset = data.load("digits")
    recipe = cdlib.train.Recipe(epochs=3, batch_size=256, optimizer="sgd", lr=0.05)
    steps = len(dataset.train) // 256
    example = dataset.test.input(1)

    class Stop(Exception):
        pass

    def run(checkpoint: Path | None, stop: int | None = None) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model, made = models.build("vgg_mini", 10, in_channels=1), []

        def wrap(base: torch.optim.Optimizer) -> GroupSparse:
            made.append(METHODS[method](model, example, base, 0.5, start=steps, steps=steps))
            return made[0]

        def interrupt(step: int) -> None:
            if step == stop:
                raise Stop

        cdlib.train.fit(
            model, dataset, recipe, optimizer=wrap, checkpoint=checkpoint, progress=False, after_step=interrupt
        )
        return model, made[0]

    model, optimizer = run(None)
    assert optimizer.sparsity == pytest.approx(0.5, abs=1 / optimizer.units.count)
    with pytest.raises(Stop):
        run(tmp_path / "c.pt", stop=2 * steps + 1)
    again, optimizer = run(tmp_path / "c.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    small = cdlib.remove(again, example, optimizer.drop())
    full = cdlib.train.evaluate(again, dataset.test)
    assert torch.equal(full.correct, cdlib.train.evaluate(small, dataset.test).correct)


PROCESS = """
import hashlib, sys, torch, cdlib
from accelerate import Accelerator
from cdlib import models
from tests.pruning.test_oto import METHODS, train
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
torch.manual_seed(0)
model = models.build("vgg_mini", 10, in_channels=1)
x = torch.zeros(1, 1, 8, 8)
for m in model.modules():
    if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
        m.momentum = 0.0  # its statistics are each process's own
base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
net, optimizer = accelerator.prepare(model, METHODS[sys.argv[1]](model, x, base, 0.5, start=1, steps=4))
train(model, optimizer, 6, x, first=100 * accelerator.process_index, net=net)
drop = optimizer.optimizer.drop()
small = cdlib.remove(model, x, drop)
weights = torch.cat([p.detach().flatten() for p in model.parameters()])
text = f"{hashlib.sha256(weights.numpy().tobytes()).hexdigest()} {sum(map(len, drop.values()))} {drop}"
with open(f"{sys.argv[2]}/{accelerator.process_index}", "w") as file:
    file.write(text)
"""


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_have_identical_weights(method: str, tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), method, str(tmp_path)]
    root = str(Path(__file__).parents[2])

    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    one, other = ((tmp_path / name).read_text() for name in ("0", "1"))
    assert one == other
    assert int(one.split()[1]) == math.floor(0.5 * sum([16, 16, 32, 32, 64, 64, 64]))


# ------------------------------------------------------------------------------------------------------------ bad input


def make(method: Any = hesso, model: nn.Module | None = None, **options: Any) -> Any:
    model = model or chain()
    return method(model, X, torch.optim.SGD(model.parameters(), lr=0.1), **{"steps": 4, **options})


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
        ({"method": dhspg, "epsilon": 1.0}, "epsilon=1.0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        make(**options)


def test_a_model_without_prunable_groups() -> None:
    with pytest.raises(CdlibError, match="none is zero-invariant"):
        make(model=nn.Sequential(nn.Linear(3, 2)).double())


def test_groups_that_the_base_does_not_train_are_left_out() -> None:
    model = chain()
    model[0].bias.requires_grad_(False)
    assert make(model=model).units.sizes == {"2": 5}


@pytest.mark.parametrize("method", METHODS)
def test_norms_in_higher_precision_than_the_rest(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).bfloat16()
    model[1].float()
    x = torch.randn(4, 3, 8, 8, dtype=torch.bfloat16)
    optimizer = METHODS[method](model, x[:1], torch.optim.SGD(model.parameters(), lr=0.01), 0.5, steps=3)
    for _ in range(4):
        optimizer.zero_grad()
        model(x).float().square().mean().backward()
        optimizer.step()
    assert optimizer.sparsity == 0.5
    assert [p.dtype for p in model[:2].parameters()] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    cut = cdlib.remove(model, x[:1], optimizer.drop())
    assert torch.equal(cut.eval()(x), model.eval()(x))


@pytest.mark.parametrize("method", METHODS)
def test_a_state_of_another_network_or_with_other_options_is_refused(method: str) -> None:
    make_it = METHODS[method]
    state = copy.deepcopy(make(make_it).state_dict())
    other = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    for optimizer in (make(make_it, model=other), make(make_it, steps=5), make(make_it, target=0.2)):
        with pytest.raises(CdlibError, match="this state is not of this"):
            optimizer.load_state_dict(state)
    with pytest.raises(CdlibError, match="are none"):
        make(make_it).load_state_dict(torch.optim.SGD(chain().parameters(), lr=0.1).state_dict())
    another = make(hesso if method == "dhspg" else dhspg)
    with pytest.raises(CdlibError, match="this state is not of this"):
        another.load_state_dict(state)


def test_no_parameters_can_be_added_later() -> None:
    with pytest.raises(CdlibError, match="add them to the base"):
        make().add_param_group({"params": [nn.Parameter(torch.ones(1))]})


@pytest.mark.parametrize(("options", "message"), [({}, "only 5"), ({"ema": 0.9, "epochs": 2}, "ema=0.9")])
def test_training_that_is_too_short_or_averages_is_refused_before_it_starts(
    options: dict[str, Any], message: str
) -> None:
    dataset = data.load("digits")
    recipe = cdlib.train.Recipe(**{"epochs": 1, "batch_size": 256, **options})
    model = models.build("vgg_mini", 10, in_channels=1)
    with pytest.raises(CdlibError, match=message):
        cdlib.train.fit(
            model, dataset, recipe, optimizer=lambda b: hesso(model, dataset.test.input(1), b, steps=6), progress=False
        )


def test_kinds() -> None:
    assert isinstance(make(), HESSO)
    assert isinstance(make(dhspg), DHSPG)
    assert make(dhspg).penalty == 1e-3
    model = chain()
    assert dhspg(model, X, torch.optim.AdamW(model.parameters()), steps=1).coefficient == 1e3


@pytest.mark.parametrize("method", METHODS)
def test_every_group_keeps_a_least_width(method: str) -> None:
    for least, kept in ((1, {6, 3, 1}), (2, {6, 3, 2})):
        model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()
        with torch.no_grad():
            model[2].weight.mul_(1e-3)
            model[2].bias.mul_(1e-3)
        optimizer = make(METHODS[method], model, target=0.35 + 0.01 * least, min_width=least)
        for t in range(4):
            for name, p in model.named_parameters():
                p.grad = 1e-3 * torch.from_numpy(gradient(name, p.detach().numpy(), t))
            optimizer.step()
        left = 6 - len(optimizer.drop().get("2", []))
        assert left >= least
        assert left in kept


def test_a_unit_that_is_zero_when_it_is_chosen_stays_so() -> None:
    model = chain()
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = 0
    optimizer = make(dhspg, model, target=0.2, steps=50)
    for t in range(3):
        for name, p in model.named_parameters():
            p.grad = torch.from_numpy(gradient(name, p.detach().numpy(), t))
        optimizer.step()
        assert 2 in optimizer.drop()["0"]
        assert not model[0].weight[2].any()
        assert model[0].bias[2] == 0
