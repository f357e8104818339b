"""What a network is called with: its arguments, and which dimension of them counts samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError
from cdlib.graph.trees import map_tensors, once, tensors

ExampleInput = Tensor | Sequence[Any]
"""A tensor, or a tuple of positional arguments: tensors, numbers, None, dictionaries, lists of them."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of a call of a network.

    Attributes
    ----------
    args : tuple
        The positional ones.
    kwargs : dict
        Those by name.
    batch_dim : int or None
        The dimension that counts samples in every tensor that is as long there as the first one; None if there is no
        such dimension.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch_dim: int | None

    @classmethod
    def of(
        cls, example_input: ExampleInput, kwargs: Mapping[str, Any] | None = None, batch_dim: int | None = 0
    ) -> Inputs:
        """Return what a user gave as the input of a network.

        A CdlibError if it is no tensor or tuple, holds no tensor or no sample, or has no such dimension.
        """
        if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)):
            raise CdlibError(f"kwargs is {type(kwargs).__name__!r}; pass a dict of the network's arguments by name.")
        args: Any = (example_input,) if isinstance(example_input, Tensor) else example_input
        if not isinstance(args, tuple | list) or not tensors((args, kwargs)):
            raise CdlibError(
                f"example_input is {type(example_input).__name__!r}; pass a tensor, or a tuple of the network's "
                "arguments (those by name in kwargs)."
            )
        inputs = cls(tuple(args), {**(kwargs or {})}, batch_dim)
        if batch_dim is not None and type(batch_dim) is not int:
            raise CdlibError(f"batch_dim={batch_dim!r}: give the number of a dimension of the input, or None.")
        if any(t.is_nested for t in tensors(inputs)):
            raise CdlibError(
                "the input holds a nested tensor, which has no one shape: pass a sample as a plain tensor."
            )
        first = tensors(inputs)[0]
        if batch_dim is not None and first.dim():
            if not -first.dim() <= batch_dim < first.dim():
                raise CdlibError(f"batch_dim={batch_dim} is no dimension of an input of shape {tuple(first.shape)}.")
            if first.shape[batch_dim] == 0:
                raise CdlibError(f"example_input of shape {tuple(first.shape)} holds no sample; pass at least one.")
        return inputs

    @property
    def count(self) -> int | None:
        """How many samples they are; None if nothing counts them."""
        first = tensors(self)[0]
        return None if self.batch_dim is None or not first.dim() else first.shape[self.batch_dim]

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with every tensor changed; one that is given twice stays one."""
        args, kwargs = map_tensors(once(function), (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs)

    def to(self, device: torch.device) -> Inputs:
        """The same on a device, where a tensor that has a shape only becomes zeros."""
        return self.map(lambda t: torch.zeros_like(t, device=device) if t.is_meta else t.to(device))

    def samples(self) -> Iterator[Inputs]:
        """The arguments for each sample alone."""
        for k in range(self.count or 1):
            yield self._take([k])

    def one_sample(self) -> Inputs:
        """The arguments for the first sample."""
        return self._take([0])

    def repeated(self, samples: int) -> Inputs:
        """The arguments for the first sample several times."""
        return self._take([0] * samples)

    def call(self, model: nn.Module) -> Any:
        """What a network returns for them."""
        return model(*self.args, **self.kwargs)

    def _take(self, samples: list[int]) -> Inputs:
        dim, count = self.batch_dim, self.count
        if dim is None or count is None:
            return self
        return self.map(lambda t: _taken(t, dim, samples) if -t.dim() <= dim < t.dim() and t.shape[dim] == count else t)


def _taken(t: Tensor, dim: int, samples: list[int]) -> Tensor:
    """Some samples of a tensor of any layout."""
    if t.layout == torch.strided:
        parts = [t.narrow(dim, k, 1) for k in samples]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    return t.to_sparse_coo().index_select(dim, torch.tensor(samples, device=t.device)).to_sparse(layout=t.layout)
