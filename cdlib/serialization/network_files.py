"""Networks on the disk, also ones that something was removed from, without pickling.

A file is in the safetensors format, which holds tensors and a text. The tensors are the parameters and buffers; the
text says in JSON how to come by the network: the name and options it was built with by `cdlib.models.build` or, for a
class of your own, only the class; what was removed from it; and a digest of everything. Nothing in a file is executed:
a network of your own is handed to `load`, which does the removals again on a copy and puts the tensors in.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdlib.errors import CdlibError
from cdlib.graph import ExampleInput
from cdlib.models import CARD, RECIPE, Card, build
from cdlib.pruning import permanent, put_on_like, refresh
from cdlib.quantization import Quantized, codebooks
from cdlib.serialization import archive, packed, shared_values, state
from cdlib.surgery import HISTORY, from_json, is_complete, replay, to_json
from cdlib.text import one_line
from cdlib.torch_state import copied, is_channels_last, tensors_of, tied

_SOURCES = {"weights", "weights_backbone"}  # of torchvision
_SOURCES |= {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}  # of timm
"""Options that say where weights come from: not kept, since the file has the weights, and not followed."""


def save(model: nn.Module, path: str | Path) -> None:
    """Write a network to a file, all or nothing; a file that is there is replaced.

    Kept are the values, types and memory formats of all parameters and buffers, a shared one once; masks; which modules
    are in training mode; what `cdlib.remove` took out; the recipe, if the network came from `cdlib.models.build`; and
    the card of one that ships trained, without accuracy and record, which are those of its own weights.
    Not kept are gradients, ``requires_grad``, other hooks, and changes that were made to the modules by hand.

    Parameters
    ----------
    model : nn.Module
        Any network with tensors of ordinary layout, cut or not, on any device.
    path : str or Path
        The file; its folder must exist. ``.cdlib`` is the usual ending, by which the command line knows it.

    Raises
    ------
    CdlibError
        If the network holds something else than tensors (a quantized or compiled one does), tensors without values, of
        a type that safetensors lacks or that share memory without being the same, or a module that was cut by itself;
        or if the file cannot be written.

    Examples
    --------
    >>> import cdlib
    >>> cdlib.save(cdlib.models.build("vgg_mini"), "vgg.cdlib")  # doctest: +SKIP
    """
    if isinstance(model, Quantized):
        archive.write(Path(path).expanduser(), _describe(model), packed.written(model), stream=True)
        return
    if isinstance(model, nn.Module) and codebooks(model):
        plain = _without_codebooks(model)
        state.check(plain)
        said = {**_describe(plain), "shared_values": shared_values.numbers_of(model)}
        archive.write(Path(path).expanduser(), said, shared_values.written(model), stream=True)
        return
    state.check(model)
    archive.write(Path(path).expanduser(), _describe(model), state.packed(tensors_of(model)))


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the network that `save` wrote.

    It comes out with the types, memory formats and modes it was saved with, on the device of `model` or, without it, on
    the default device of torch: inside ``with torch.device("meta")`` it has shapes but no storage. The random generator
    of the CPU is left as it was.

    Parameters
    ----------
    path : str or Path
        The file.
    model : nn.Module, optional
        A network of the same class and options as the saved one had *before* anything was removed; its weights and
        masks do not matter and it is not changed. Needed for what `cdlib.models.build` does not know by name.

    Raises
    ------
    CdlibError
        If the file is missing, damaged, altered, of another version or not written by `save`; if the network cannot be
        built or `model` is missing, of another class, or does not fit.
    """
    file = Path(path).expanduser()
    description, tensors = archive.read(file)
    network = _fresh(file, description, model)
    if "card" in description:
        try:
            setattr(network, CARD, Card.read(description["card"]))
        except CdlibError as error:
            raise CdlibError(f"{file} is damaged: {error} Get the file again.") from error
    try:
        for entry in description["removed"]:
            network = replay(network, entry)
        if "quantized" in description:
            return packed.read(network, description["quantized"], tensors)
        if numbers := description.get("shared_values"):
            made = {f"{name}.weight": tensors_of(network)[f"{name}.weight"] for name in numbers}
            streams = {name: t for name, t in tensors.items() if name.rpartition(".")[0] in made}
            tensors = {**{name: t for name, t in tensors.items() if name not in streams}, **made}
        put_on_like(network, {*tensors, *description["shared"]})
        state.check_fit(network, tensors, description["shared"], description["temporary"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise CdlibError(_misfit(file, description["class"], error, model)) from error
    state.fill(network, tensors, set(description["channels_last"]))
    refresh(network)
    if numbers:
        shared_values.read(network, numbers, streams)
    unlike = set(description["unlike"])
    for name, module in network.named_modules():
        module.training = description["training"] != (name in unlike)
    return network


def example_input(path: str | Path) -> ExampleInput | None:
    """Return the input, as zeros, that the last removal from a saved network ran on, or that its card says, or None.

    Errors are those of `load`, and one if the input cannot be made again.
    """
    description = archive.read(Path(path).expanduser(), tensors=False)[0]
    if removed := description["removed"]:
        return from_json(removed[-1]["input"])
    return torch.zeros(1, *Card.read(description["card"]).shape) if "card" in description else None


def _describe(model: nn.Module) -> dict[str, Any]:
    from cdlib import __version__

    card: Card | None = getattr(model, CARD, None)
    return {
        "cdlib": __version__,
        "torch": torch.__version__,
        "class": model.source if isinstance(model, Quantized) else state.kind(model),
        **({"quantized": model.plan} if isinstance(model, Quantized) else {}),
        "recipe": _recipe(model),
        **({"card": asdict(replace(card, accuracy=None, record=""))} if card else {}),
        "removed": getattr(model, HISTORY, []),
        "shared": tied(model),
        "temporary": sorted(state.temporary(model)),
        "channels_last": [name for name, tensor in tensors_of(model).items() if is_channels_last(tensor)],
        "training": model.training,
        "unlike": [name for name, module in model.named_modules() if module.training != model.training],
    }


def _recipe(model: nn.Module) -> dict[str, Any] | None:
    """What `cdlib.models.build` was called with; of a file only its name, and no options that JSON does not have."""
    recipe = getattr(model, RECIPE, None)
    if recipe is None:
        return None
    name = recipe["name"]
    name = Path(name).name if ".py" in name else name
    options = to_json({key: value for key, value in recipe["options"].items() if key not in _SOURCES})
    return {"name": name, "classes": recipe["classes"], "options": options} if is_complete(options) else None


def _without_codebooks(model: nn.Module) -> nn.Module:
    """A copy of a network that shares weights, with weights of its own."""
    network = copied(model)
    for name in codebooks(network):
        layer: Any = network.get_submodule(name)
        weight = layer.weight.detach()
        layer.__class__ = type(layer).__bases__[0]  # torch's removal would also change the class of the one copied
        del layer.parametrizations
        layer.weight = nn.Parameter(weight)
    return network


def _misfit(file: Path, kind: str, error: Exception, model: nn.Module | None) -> str:
    why = one_line(error)
    do = "pass the network as it was before anything was removed"
    if model is None:
        do = f"if the network was changed after it was built, {do}: load(path, model=...)"
    return f"{file} does not fit {kind}: {why}; {do}."


def _fresh(file: Path, description: dict[str, Any], model: nn.Module | None) -> nn.Module:
    """Return the network before the removals: a copy of `model` without masks, or a new one from its recipe."""
    network = permanent(model) if model is not None else _built(file, description)
    kind, wanted = state.kind(network), description["class"]
    if kind != wanted:
        raise CdlibError(f"{file} holds a {wanted} and not a {kind}: pass model=, a network of that class.")
    if getattr(network, HISTORY, None):
        raise CdlibError(f"model was cut already: for {file}, pass the {wanted} as it was before anything was removed.")
    return network


def _built(file: Path, description: dict[str, Any]) -> nn.Module:
    """Return a new network from its recipe, which may name neither a file of code nor weights from elsewhere."""
    recipe, kind = description.get("recipe"), description["class"]
    own = f"load(path, model={kind}(...))"
    if not isinstance(recipe, dict):
        raise CdlibError(f"{file} holds a {kind}, which cdlib does not know by name: pass the network, {own}.")
    name, classes, options = recipe.get("name"), recipe.get("classes"), from_json(recipe.get("options"))
    if not isinstance(name, str) or not isinstance(classes, int) or not isinstance(options, dict):
        raise CdlibError(f"{file} is damaged: its recipe is {recipe!r}. Get the file again.")
    if ".py" in name:
        raise CdlibError(
            f"{file} holds a {kind} made by {name}, and load runs no code that a file names: pass the network, "
            f"load(path, model=cdlib.models.build('path/to/{name}', {classes})), or on the command line "
            f"path/to/{name} --weights {file.name}."
        )
    if _SOURCES & options.keys():
        raise CdlibError(f"{file} asks for weights from elsewhere, which save never does: pass the network, {own}.")
    try:
        with torch.random.fork_rng(devices=[]):
            return build(name, classes, **options)
    except (CdlibError, TypeError) as error:
        why = str(error).rstrip(".")
        raise CdlibError(
            f"{file} holds a {name!r} that cannot be built here ({why}): pass the network, {own}."
        ) from error
