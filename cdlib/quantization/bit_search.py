"""How many bits where: a controller that learns it, and what it must be compared with at equal bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from cdlib.data import Split
from cdlib.errors import check_choice, check_seed, check_whole
from cdlib.quantization.bit_costs import WIDTHS, Mixture, check_budget, knapsack
from cdlib.quantization.placing import Quantized

Bits = dict[str, int]


@dataclass(frozen=True)
class Search:
    """What a search found, and what it took."""

    bits: Bits  #: By layer.
    loss: float  #: With them, on the images it was judged by.
    bytes: int  #: Of the packed weights.
    evaluations: int  #: Of the network.
    history: list[dict[str, object]] = field(default_factory=list)
    """Of the controller, by round: the probabilities of each width by layer, the mean loss, and the least so far."""


def bitwidths(
    model: Quantized,
    judge: Split,
    budget_bytes: int,
    *,
    way: str = "controller",
    rounds: int = 60,
    draws: int = 4,
    seed: int = 0,
) -> Search:
    """Return bits for the weights of each layer, 2 to 8, within a budget of bytes.

    Parameters
    ----------
    model : Quantized
        Of `cdlib.quantization.static`, with 8 bits.
    judge : Split
        Labelled training images by which mixtures are judged; the result is only as good as they are many.
    budget_bytes : int
        The most that all packed weights together may take; biases and scales come on top.
    way : str, default "controller"
        - "controller": a recurrent network draws the bits layer by layer, and is trained by the policy gradient to
          make the loss small (Williams 1992), as in DNQ (Xu et al. 2018, arXiv:1812.02375). What is
          over the budget is made to fit by taking a bit off the layer with the most bytes, again and again (HAQ, Wang
          et al. 2019, arXiv:1811.08886, does so layer by layer).
        - "uniform": as many bits for all as fit.
        - "random": the best of as many mixtures within the budget as the controller tries.
        - "greedy": from 8 bits down, one bit at a time, where a byte saved costs least loss, measured each time.
        - "hessian": the knapsack over what second derivatives foretell (HAWQ-V2, Dong et al. 2020, arXiv:1911.03852).
        - "knapsack": the exact optimum of the sum of measured increases, one layer at a time.
    rounds, draws : int, default 60 and 4
        Of the controller: updates, and mixtures for each.
    seed : int, default 0

    Raises
    ------
    CdlibError
        If 2 bits for every weight do not fit; the message says how much they take.
    """
    check_choice("way", way, WAYS)
    check_whole("rounds", rounds, 1)
    check_whole("draws", draws, 1)
    check_seed(seed)
    mixture = Mixture(model, judge)
    check_budget(mixture.bytes(dict.fromkeys(mixture.sizes, WIDTHS[0])), budget_bytes)
    bits, history = WAYS[way](mixture, budget_bytes, rounds, draws, seed)
    searched = mixture.evaluations
    return Search(bits, mixture.loss(bits), mixture.bytes(bits), searched, history)


def fitted(mixture: Mixture, bits: Bits, budget: int) -> Bits:
    """Return bits that fit: one is taken off the layer with the most bytes until they do."""
    bits = dict(bits)
    while mixture.bytes(bits) > budget:
        most = max((name for name in bits if bits[name] > WIDTHS[0]), key=lambda name: mixture.sizes[name] * bits[name])
        bits[most] -= 1
    return bits


Found = tuple[Bits, list[dict[str, object]]]


def _uniform(mixture: Mixture, budget: int, *_: int) -> Found:
    every = [dict.fromkeys(mixture.sizes, width) for width in WIDTHS]
    return [bits for bits in every if mixture.bytes(bits) <= budget][-1], []


def _random(mixture: Mixture, budget: int, rounds: int, draws: int, seed: int) -> Found:
    random = np.random.default_rng(seed)
    drawn = [
        fitted(mixture, {name: int(random.integers(WIDTHS[0], WIDTHS[-1] + 1)) for name in mixture.sizes}, budget)
        for _ in range(rounds * draws)
    ]
    return min(drawn, key=mixture.loss), []


def _greedy(mixture: Mixture, budget: int, *_: int) -> Found:
    bits = dict.fromkeys(mixture.sizes, WIDTHS[-1])
    while mixture.bytes(bits) > budget:
        now = mixture.loss(bits)
        less = [{**bits, name: bits[name] - 1} for name in bits if bits[name] > WIDTHS[0]]
        saved = mixture.bytes(bits)
        bits = min(less, key=lambda tried: (mixture.loss(tried) - now) / max(saved - mixture.bytes(tried), 1))
    return bits, []


def _hessian(mixture: Mixture, budget: int, _: int, __: int, seed: int) -> Found:
    return knapsack(mixture.foretold(seed=seed), mixture.sizes, budget), []


def _knapsack(mixture: Mixture, budget: int, *_: int) -> Found:
    return knapsack(mixture.increases(), mixture.sizes, budget), []


class Controller(nn.Module):
    """Draws the bits of one layer after the other, knowing its size and what was drawn before.

    A GRU cell of 32 units; its inputs are the logarithm of the layer's weights, its place, and the last bits.
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        logs = torch.tensor(sizes, dtype=torch.float32).log()
        place = torch.linspace(-1, 1, len(sizes))
        self.register_buffer("layers", torch.stack([(logs - logs.mean()) / (logs.std() + 1e-6), place], 1))
        self.cell, self.head = nn.GRUCell(3, 32), nn.Linear(32, len(WIDTHS))
        nn.init.zeros_(self.head.weight)  # all widths are equally likely at first
        nn.init.zeros_(self.head.bias)

    def forward(self, generator: torch.Generator) -> tuple[list[int], Tensor, Tensor]:
        """Return drawn bits, the logarithm of their probability, and the distributions [layers, widths]."""
        state, last = torch.zeros(1, 32), torch.zeros(1)
        bits, logs, seen = [], torch.zeros(()), []
        for layer in self.get_buffer("layers"):
            state = self.cell(torch.cat([layer, last]).unsqueeze(0), state)
            chances = self.head(state).squeeze(0).log_softmax(0)
            index = int(torch.multinomial(chances.exp(), 1, generator=generator))
            bits.append(WIDTHS[index])
            logs = logs + chances[index]
            seen.append(chances.exp())
            last = torch.tensor([(WIDTHS[index] - 5) / 3])
        return bits, logs, torch.stack(seen)


def _controller(mixture: Mixture, budget: int, rounds: int, draws: int, seed: int) -> Found:
    names, generator = list(mixture.sizes), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controller = Controller(list(mixture.sizes.values()))
    optimizer = torch.optim.Adam(controller.parameters(), lr=1e-2)
    best, usual = fitted(mixture, dict.fromkeys(names, WIDTHS[-1]), budget), 0.0
    history: list[dict[str, object]] = []
    for _ in range(rounds):
        losses, terms, chances = [], [], []
        for _ in range(draws):
            drawn, logs, seen = controller(generator)
            bits = fitted(mixture, dict(zip(names, drawn, strict=True)), budget)
            losses.append(mixture.loss(bits))
            best = min(best, bits, key=mixture.loss)
            entropy = -(seen * seen.clamp(min=1e-9).log()).sum()
            terms.append((logs, entropy))
            chances.append(seen.detach())
        mean = sum(losses) / draws
        usual = 0.8 * usual + 0.2 * mean if history else mean
        spread = float(np.std(losses)) + 1e-6
        pairs = zip(losses, terms, strict=True)
        value = torch.stack([(loss - usual) / spread * logs - 0.01 * entropy for loss, (logs, entropy) in pairs]).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append({"chances": torch.stack(chances).mean(0).tolist(), "loss": mean, "least": mixture.loss(best)})
    return best, history


WAYS: dict[str, Callable[..., Found]] = {
    "controller": _controller,
    "uniform": _uniform,
    "random": _random,
    "greedy": _greedy,
    "hessian": _hessian,
    "knapsack": _knapsack,
}
