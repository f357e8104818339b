"""Labels: a number for every slice of every tensor that may vanish, and what was found out about them.

A *label* stands for one index of one dimension of a parameter or buffer ("row 5 of ``conv1.weight``"), or for one
index of a uniform tensor that the network makes by itself (zeros, padding) and that can follow in size. An `Axis` gives
the labels along one dimension of a tensor of the run; when a label vanishes, so do the positions that carry it.

The `Ledger` collects what the walk over the network (`cdlib.grouping.walk_state`) finds: which labels must vanish
together, which must stay, and which could not be removed without changing the function although they were zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]
Key = tuple[str, int]
"""The name of a parameter or buffer, and one of its dimensions."""


class Axis(NamedTuple):
    """The labels along one dimension."""

    ids: Ids  #: One label per index. A negative number -1 - k says that the index stays for the reason number k.
    zero: Flags  #: Whether the values at an index are zero once the own slices of its label's unit are.

    def take(self, index: slice | Ids) -> Axis:
        """The labels at some of the indices."""
        return Axis(self.ids[index], self.zero[index])

    def each(self, change: Callable[[NDArray[Any]], Any]) -> Axis:
        """The same change made to labels and flags, for example a reshape."""
        return Axis(change(self.ids), change(self.zero))

    def known(self, zero: Flags | bool) -> Axis:
        """The same labels with another answer to whether they are zero."""
        return Axis(self.ids, np.broadcast_to(np.asarray(zero, dtype=bool), self.ids.shape))


Axes = tuple[Axis | None, ...]


class Labels(NamedTuple):
    """The labels of a tensor: an `Axis` per dimension, or None where nothing can vanish, and why not."""

    axes: Axes
    why: str = ""

    def replaced(self, dim: int, *axes: Axis | None) -> Labels:
        """The same with other dimensions, or none, in place of one."""
        return Labels((*self.axes[:dim], *axes, *self.axes[dim + 1 :]), self.why)

    def not_zero(self) -> Labels:
        """The same labels of values that are not zero, or not known to be."""
        return Labels(tuple(axis and axis.known(False) for axis in self.axes), self.why)


def unlabelled(shape: tuple[int, ...], why: str = "meets a dimension of fixed size") -> Labels:
    """The labels of a tensor that cannot change."""
    return Labels((None,) * len(shape), why)


class Problem(NamedTuple):
    """Labels about which something was found out, the operator where, and the reason in words."""

    ids: Ids
    op: int
    reason: str


@dataclass
class Ledger:
    """What is known about labels. Atoms are the labels of parameters and buffers: name and dimension to the first."""

    atoms: dict[Key, tuple[int, int]] = field(default_factory=dict)
    count: int = 0
    reasons: list[str] = field(default_factory=lambda: [""])
    frozen: list[Problem] = field(default_factory=list)
    noticed: list[Problem] = field(default_factory=list)
    lost: list[Problem] = field(default_factory=list)
    consumed: list[Ids] = field(default_factory=list)
    produced: list[Ids] = field(default_factory=list)
    _pairs: list[tuple[Ids, Ids]] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=lambda: {"": 0})

    def atom(self, tensor: str, dim: int, size: int) -> Ids:
        """The labels of one dimension of a parameter or buffer."""
        if (tensor, dim) not in self.atoms:
            self.atoms[tensor, dim] = (self.count, size)
            self.count += size
        first = self.atoms[tensor, dim][0]
        return np.arange(first, first + size)

    def fresh(self, size: int) -> Ids:
        """Labels of a uniform tensor, which follow whatever they meet."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def fixed(self, size: int, reason: str) -> Ids:
        """Markers for indices that stay."""
        return np.full(size, -1 - self.reason(reason))

    def reason(self, text: str) -> int:
        """The number of a reason; the first one, 0, is none."""
        if text not in self._numbers:
            self._numbers[text] = len(self.reasons)
            self.reasons.append(text)
        return self._numbers[text]

    def couple(self, a: Ids, b: Ids, op: int) -> None:
        """Note that a[i] and b[i] vanish together, or not at all where one of them stays."""
        if a is b:
            return
        free = (a >= 0) & (b >= 0)
        if not free.all():
            for stays, other in ((a, b), (b, a)):
                for marker in np.unique(stays[(stays < 0) & (other >= 0)]):
                    self.freeze(other[stays == marker], op, self.reasons[-1 - marker])
            a, b = a[free], b[free]
        self._pairs.append((a, b))

    def freeze(self, ids: Ids, op: int, reason: str) -> None:
        """Note that labels must stay."""
        if (free := ids[ids >= 0]).size:
            self.frozen.append(Problem(free, op, reason or "meets a dimension of fixed size"))

    def notice(self, ids: Ids, op: int, reason: str) -> None:
        """Note that removing labels changes the function even when they are zero."""
        if (free := ids[ids >= 0]).size:
            self.noticed.append(Problem(free, op, reason))

    def lose(self, ids: Ids, op: int, place: str) -> None:
        """Note that an operator, named by its place, makes other numbers of zeros."""
        if (free := ids[ids >= 0]).size:
            self.lost.append(Problem(free, op, f": {place} does not turn zero into zero"))

    def components(self) -> Ids:
        """Return, for every label, the smallest label that it vanishes together with."""
        parent = np.arange(self.count)
        if not self._pairs:
            return parent
        a, b = (np.concatenate(side) for side in zip(*self._pairs, strict=True))
        while True:
            roots_a, roots_b = parent[a], parent[b]
            low, high = np.minimum(roots_a, roots_b), np.maximum(roots_a, roots_b)
            if (apart := low != high).sum() == 0:
                return parent
            np.minimum.at(parent, high[apart], low[apart])
            while (parent != (above := parent[parent])).any():
                parent = above

    def roles(self) -> tuple[set[Key], set[Key]]:
        """The dimensions of tensors that products make rows from, and those that they read; some are both."""
        made, read = (
            {key for key, (first, size) in self.atoms.items() if marks[first : first + size].any()}
            for marks in (self.marked(self.produced), self.marked(self.consumed))
        )
        return made, read

    def marked(self, lists: list[Ids]) -> Flags:
        """Return, for every label, whether it is in one of the lists."""
        marks = np.zeros(self.count, dtype=bool)
        for ids in lists:
            marks[ids[ids >= 0]] = True
        return marks
