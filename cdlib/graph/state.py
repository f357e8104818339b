"""What a forward may change besides its results: attributes, what they hold, buffers, random numbers of Python."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_HOOKS = set(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}
"""What every module keeps for hooks and settings: many, nearly always empty, and nothing that a forward writes to."""

_PLAIN = {type(None), bool, int, float, str, Tensor, nn.Parameter}  # the types of most attributes: nothing is in them
_CLOSED = (Tensor, nn.Module, type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, torch.ScriptObject)
"""What is not looked into; modules have each a turn of their own."""


def snapshot(model: nn.Module) -> Callable[[], None]:
    """Return what puts back all that a forward might change in a network, and random numbers of Python and NumPy."""
    seen: set[int] = set()
    contents = [pair for module in model.modules() for pair in _contents(_attributes(module), seen)]
    buffers = [(b, b._version, b.detach().clone()) for b in model.buffers() if not b.is_inference()]
    python, numpy = random.getstate(), np.random.get_state()

    def restore() -> None:
        for kept, content in contents:
            if not _as_before(kept, content):
                kept.clear()
                kept.extend(content) if isinstance(kept, list | deque) else kept.update(content)
        for buffer, version, before in buffers:
            if buffer._version != version:
                buffer.copy_(before)
        random.setstate(python)
        np.random.set_state(numpy)

    return restore


def kept(model: nn.Module) -> Callable[[], set[tuple[str, str]]]:
    """Return what tells which attributes of which modules, by their names, are no longer what they are now."""
    held = {
        (path, name): (value, list(_contents(value, set())))
        for path, module in model.named_modules()
        for name, value in {**_attributes(module), **module._buffers}.items()
        if name not in _HOOKS
        and name not in ("_parameters", "_buffers", "_modules")
        and name not in _made_by_hooks(module)
    }

    def changed() -> set[tuple[str, str]]:
        return {
            (path, name)
            for (path, name), (value, contents) in held.items()
            if not _same(getattr(model.get_submodule(path), name, None), value)
            or not all(_as_before(*pair) for pair in contents)
        }

    return changed


def drawn() -> tuple[Any, ...]:
    """Where the random numbers of Python and NumPy stand."""
    kind, words, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(words).tobytes(), *rest


def _made_by_hooks(module: nn.Module) -> set[str]:
    """The weights that masks (`torch.nn.utils.prune`), weight norm or spectral norm make anew before each call."""
    hooks = module._forward_pre_hooks.values()
    return {getattr(hook, "_tensor_name", getattr(hook, "name", "")) for hook in hooks}


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {} if isinstance(module, torch.jit.ScriptModule) else vars(module)


def _contents(root: Any, seen: set[int]) -> Iterator[tuple[Any, Any]]:
    """The containers and attributes of plain objects in one, each with a copy; not again those that were seen."""
    todo = [root]
    while todo:
        item = todo.pop()
        if not isinstance(item, dict | list | set | deque | tuple):
            kind = type(item)
            closed = kind in _PLAIN or isinstance(item, _CLOSED) or kind.__module__.partition(".")[0] == "torch"
            item = None if closed else getattr(item, "__dict__", None)
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            todo += [value for name, value in item.items() if name not in _HOOKS]
        else:
            todo += item
        if not isinstance(item, tuple):
            yield item, item.copy()


def _as_before(kept: Any, content: Any) -> bool:
    if isinstance(kept, set):
        return kept == content
    if isinstance(kept, dict):
        kept, content = ([*held, *held.values()] for held in (kept, content))
    return len(kept) == len(content) and (all(map(is_, kept, content)) or all(map(_same, kept, content)))


def _same(a: Any, b: Any) -> bool:
    """Whether two attributes are the same object, or are alike and hold no tensor."""
    if isinstance(a, tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    plain = isinstance(a, bool | int | float | str | torch.dtype | torch.device) and type(a) is type(b)
    return a is b or (plain and a == b)
