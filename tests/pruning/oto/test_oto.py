"""Joint training and pruning against a plain transcription of the published rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from joint_setup import BASES, X, chain, gradient, make

from cdlib import find_groups
from cdlib.pruning import dhspg, hesso
from cdlib.pruning.oto import DHSPG, HESSO
from cdlib.pruning.oto.group_sparse import GroupSparse

GROUPS = {"0": ("0.weight", "0.bias"), "2": ("2.weight", "2.bias")}


# ---------------------------------------------------- the rules, in NumPy, a unit at a time


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
        optimizer: GroupSparse = hesso(
            model, find_groups(model, X), BASES[kind](model.parameters()), 0.6, start=3, steps=13, periods=2
        )
        rule: Transcription = NumpyHesso(kind, weights, 6, 3, 13)
    else:
        own = {"penalty": 1.0, "amplify": 5.0, "coefficient": 10.0, "epsilon": 0.1 if kind == "sgd" else 0.9}
        optimizer = dhspg(model, find_groups(model, X), BASES[kind](model.parameters()), 0.6, start=3, steps=40, **own)
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
            optimizer = hesso(model, find_groups(model, X), optimizer, 0.0, steps=4)
        for t in range(6):
            optimizer.zero_grad()
            model(torch.full((2, 3), t + 1.0).double()).square().sum().backward()
            optimizer.step()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*trained)


def test_a_closure_is_called_with_gradients_and_schedulers_set_the_rate() -> None:
    model = chain()
    optimizer = hesso(model, find_groups(model, X), torch.optim.SGD(model.parameters(), lr=1.0), 0.5, steps=4)
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


def test_kinds() -> None:
    assert isinstance(make(), HESSO)
    assert isinstance(make(dhspg), DHSPG)
    assert make(dhspg).penalty == 1e-3
    model = chain()
    assert dhspg(model, find_groups(model, X), torch.optim.AdamW(model.parameters()), steps=1).coefficient == 1e3
