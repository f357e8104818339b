"""Does a cut network compute what it should? Two references that are the full-size network, never cut.

`cdlib.remove` makes tensors smaller. The references make numbers zero and leave every size as it is, so that a mistake
in what was cut, in an attribute or in rewritten code cannot occur in both.

- Where groups are zero-invariant, the reference is `cdlib.zero`: the units' own slices are zero, nothing else.
- `masked` is the reference for all groups. What reads the units is zero too, and the operators that would notice zeros
  (statistics over channels, softmax) compute on what is kept.

`check_exact` compares, on random numbers in double precision. It also cuts one wrong unit, to see that this shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdlib.errors import check_seed
from cdlib.graph import ExampleInput, Inputs, tensors
from cdlib.grouping import Drop, Groups, check_groups, find_again
from cdlib.surgery import removal
from cdlib.surgery.masked_reference import OtherCourse, masked
from cdlib.torch_state import copied


@dataclass(frozen=True)
class Exactness:
    """How far a cut network is from its references: the largest difference of outputs, relative to the largest one."""

    zeroed: float | None
    """Between `cdlib.zero` and `cdlib.remove` of the same units. Below 1e-9 if the cut is exact, in double precision;
    None if some of the groups are not zero-invariant, for which the two need not agree."""
    masked: float | None
    """Likewise between `masked` and `cdlib.remove`, for all groups; None if the network's course depends on its numbers
    in such a way that the recorded operators cannot be found again."""
    effect: float
    """Between the full network and the reference. If it is 0, dropping the units changes nothing, and the two numbers
    above prove nothing."""
    control: float
    """Between the reference and a network from which one wrong unit was removed, which is what a mistake looks like. It
    must be much larger than `zeroed` and `masked`. Up to three wrong units are tried until one shows, since some units
    do nothing (the inputs of a ReLU that are all negative). NaN if there is no wrong unit."""


def check_exact(
    model: nn.Module,
    groups: Groups,
    drop: Drop,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    compare: Callable[[Any, Any], float] | None = None,
) -> Exactness:
    """Compare what is left of a network after `cdlib.remove` with references that have the size of the full network.

    Returns how far it is from them, an `Exactness`.

    Parameters
    ----------
    model, groups, drop
        As for `cdlib.remove`. A copy of the network and the example get other numbers, see `randomised`.
    seed : int, default 0
        Of the numbers and of the choice of the wrong unit.
    dtype : torch.dtype, default torch.float64
        The precision. In float32, the differences of an exact cut are about 1e-5.
    compare : callable, optional
        Gives the difference of two results of the network; default `difference`. A detector needs another one: it
        sorts what it found by score, and of equal scores either may come first.

    Raises
    ------
    CdlibError
        As `cdlib.remove`; or if there is neither reference.
    """
    check_groups(groups, model)
    check_seed(seed)
    compare = compare or difference
    inputs = _random(groups.inputs_for(model), seed, dtype)
    model = randomised(model, inputs.args, kwargs=inputs.kwargs, seed=seed, dtype=dtype)
    groups = find_again(model, groups, inputs)
    drop = groups.check(drop)
    small = _outputs(removal.remove(model, groups, drop), inputs)
    references: list[Any] = []
    zeroed = by_mask = None
    if all(groups[name].zero_invariant for name in drop):
        references.append(_outputs(removal.zero(model, groups, drop), inputs))
        zeroed = compare(references[-1], small)
    try:
        references.append(masked(model, groups, drop))
        by_mask = compare(references[-1], small)
    except OtherCourse:
        if not references:
            raise
    effect = compare(references[0], _outputs(model, inputs))
    control = math.nan
    for wrong in _one_wrong(groups, drop, seed):
        control = compare(references[0], _outputs(removal.remove(model, groups, wrong), inputs))
        if control > math.sqrt(torch.finfo(dtype).eps):
            break
    return Exactness(zeroed, by_mask, effect, control)


def difference(a: Any, b: Any) -> float:
    """Return the largest difference of two nests of outputs, relative to the largest number in the same tensor of `a`.

    Tensors are compared one by one, wherever they are in dictionaries, lists and tuples; the result is the worst.
    Infinity if they do not have the same number of tensors, the same shapes, or numbers everywhere.
    """
    ones, others = tensors(a), tensors(b)
    if len(ones) != len(others) or any(x.shape != y.shape for x, y in zip(ones, others, strict=True)):
        return math.inf
    return max([_relative(x.double(), y.double()) for x, y in zip(ones, others, strict=True) if x.numel()], default=0.0)


def _relative(a: Tensor, b: Tensor) -> float:
    apart, largest = (a - b).abs().max().item(), a.abs().max().item()
    if math.isnan(apart):
        return math.inf
    return apart / largest if largest else apart and math.inf


def _one_wrong(groups: Groups, drop: dict[str, list[int]], seed: int, times: int = 3) -> Iterator[dict[str, list[int]]]:
    """The same units, except that one of one group stays and another one goes; some such choices."""
    rng = np.random.default_rng(seed)
    possible = [name for name, units in drop.items() if units]
    for name in rng.permutation(possible)[:times].tolist():
        goes = rng.permutation(drop[name]).tolist()
        stays = np.setdiff1d(np.arange(groups[name].size), drop[name])
        yield {**drop, name: [*goes[1:], int(rng.choice(stays))]}


# Numbers.


def random_like(example_input: ExampleInput, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """Return arguments of the same shapes with standard normal numbers; tensors of integers stay as they are."""
    return _random(Inputs.of(example_input, batch_dim=None), seed, dtype).args


def _random(inputs: Inputs, seed: int, dtype: torch.dtype) -> Inputs:
    rng = torch.Generator().manual_seed(seed)

    def random(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=rng, dtype=dtype).to(t.device) if t.is_floating_point() else t

    return inputs.map(random)


def randomised(
    model: nn.Module,
    inputs: ExampleInput,
    *,
    kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """Return a copy, for evaluation, with random weights and statistics with which a wrong channel shows in the output.

    Weights are normal with a variance of 2 over the inputs of a unit (He et al. 2015, arXiv:1502.01852), so that
    activations neither vanish nor explode. Scales are uniform in 0.5 to 1.5, shifts normal with a deviation of 0.2. The
    statistics of batch norms are those of a run on `inputs`, times random numbers: made up ones would let the
    differences between inputs, and so between channels, fade away in deep networks.

    Parameters
    ----------
    model : nn.Module
        Any network.
    inputs, kwargs : tensor or tuple, and dict, optional
        What to call it with, of type `dtype`.
    seed : int, default 0
        Of the numbers.
    dtype : torch.dtype, default torch.float64
        Of the copy's floating-point tensors.
    """
    check_seed(seed)
    copy = copied(model).to(dtype).eval()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in copy.named_parameters():
            if tensor.is_floating_point():
                tensor.copy_(_numbers(name, tensor, rng))
    with ExitStack() as hooks:
        for module in copy.modules():
            if isinstance(getattr(module, "running_var", None), Tensor):
                hooks.enter_context(module.register_forward_pre_hook(lambda m, args: _calibrate(m, args[0], rng)))
        _outputs(copy, Inputs.of(inputs, kwargs, None))
    return copy


def _numbers(name: str, tensor: Tensor, rng: torch.Generator) -> Tensor:
    """Numbers for a parameter: a vector is a shift if it is called bias, else a scale."""
    normal = torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype).to(tensor.device)
    if tensor.dim() >= 2:
        return normal * math.sqrt(2 * tensor.shape[0] / tensor.numel()) if tensor.shape[0] > 1 else normal
    if "bias" in name.rpartition(".")[2]:
        return normal * 0.2
    return torch.rand(tensor.shape, generator=rng, dtype=tensor.dtype).to(tensor.device) + 0.5


def _calibrate(module: Any, x: Tensor, rng: torch.Generator) -> None:
    """Give a batch norm the statistics of its input, times 0.5 to 1.5; no variance is below the others' mean.

    Dividing by small ones, deep networks would enlarge rounding errors more and more. One value a channel has no
    variance: the mean square of all channels takes its place.
    """
    channels = x.detach().transpose(0, 1).flatten(1)
    mean, var = channels.mean(1), channels.var(1, correction=0)
    if channels.shape[1] == 1:
        var = channels.square().mean().expand(len(channels))
    var = torch.maximum(var, var.mean()) + 1e-3
    for buffer, value in ((module.running_mean, mean), (module.running_var, var)):
        buffer.copy_(value * (torch.rand(value.shape, generator=rng, dtype=value.dtype).to(value.device) + 0.5))


def _outputs(model: nn.Module, inputs: Inputs) -> Any:
    with torch.no_grad():
        return inputs.map(torch.clone).call(model)
