"""Networks by name: the book's own, torchvision's, timm's, or a function in a file of yours.

`build` returns a fresh network with random float32 weights drawn from torch's global generator or, when asked, with
ImageNet weights. What the book's networks look like stands in `cdlib.models.architectures`, where weights come from in
`cdlib.models.pretrained`; training is left to `cdlib.train`. Built inside `with torch.device("meta")`, a network has
shapes but no storage, which is all that counting parameters and MACs needs.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdlib.errors import CdlibError, check_seed, check_share, check_whole, unknown
from cdlib.models.architectures import BOOK, set_stem
from cdlib.models.pretrained import fetching, of_timm, of_torchvision
from cdlib.text import one_line

RECIPE = "cdlib_recipe"
"""The attribute of a built network that says what `build` was called with: its name, classes and options."""

_NO_NAMES = "give one of cdlib.models.names(), timm:NAME or path/to/file.py:function"


def build(name: str, classes: int = 10, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Build a classification network.

    Parameters
    ----------
    name : str
        One of `names()`; `timm:NAME`, or a timm name that torchvision lacks; or `path/to/file.py:function`, whose
        function is called with `options`, and with `classes` and `pretrained` if it takes them.
    classes : int, default 10
        Width of the classifier.
    pretrained : bool, default False
        Start from the library's default ImageNet weights. A classifier of another width than theirs, and a ConvNeXt
        stem of another stride than 4, do not fit them and start from random weights.
    **options
        What the network itself takes, see `options`. For the book's networks: `stem` (4, 2 or 1) and `drop_path`
        (stochastic depth, from 0 to below 1) for every ConvNeXt, `in_channels` for the `*_mini` networks.

    Returns
    -------
    torch.nn.Module
        In training mode. It maps images [N, C, H, W] to logits [N, classes]; for that reason GoogLeNet and Inception v3
        come without the auxiliary classifiers they would train with. The attribute `RECIPE` says how it was built.

    Raises
    ------
    CdlibError
        Unknown name or option, a file or function that cannot be used, or weights that cannot be had.
    """
    if not isinstance(name, str):
        raise unknown("model", name, names())
    check_whole("classes", classes, 1)
    model = _built(name, classes, pretrained, options)
    setattr(model, RECIPE, {"name": name, "classes": classes, "options": options})
    return model


def fresh(name: str, classes: int, channels: int, seed: int) -> nn.Module:
    """Build a network with the weights of a seed, for images of so many channels.

    Parameters
    ----------
    name, classes
        As for `build`.
    channels : int
        Passed on as `in_channels` to a network that takes it; any other must be made for so many.
    seed : int
        Of the weights. torch's global generator is left as it was.

    Raises
    ------
    CdlibError
        As `build`.
    """
    given: dict[str, Any] = {"in_channels": channels} if "in_channels" in options(name) else {}
    check_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(name, classes, **given)


def _built(name: str, classes: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if _is_file(name):
        return _from_file(name, classes, pretrained, options)
    if name in BOOK:
        _check(name, options, _names(BOOK[name], but=("classes",)))
        check_whole("in_channels", options.get("in_channels", 3), 1)
        fresh = _made(lambda name, given: BOOK[name](**given), name, {"classes": classes, **options})
    else:
        library = _from_torchvision if _in_torchvision(name) else _from_timm
        fresh = _made(library, name, {"num_classes": classes, **options})
    return _pretrained(name, fresh, options) if pretrained else fresh


def names() -> list[str]:
    """Return the names `build` knows by itself: the book's networks, then torchvision's other classifiers."""
    import torchvision.models as zoo

    return [*BOOK, *(name for name in zoo.list_models(module=zoo) if name not in BOOK)]


def options(name: str) -> list[str]:
    """Return the options that `build` passes on to the network `name`, as far as they can be listed.

    Raises
    ------
    CdlibError
        Unknown name, or a file or function that cannot be used.
    """
    import torchvision.models as zoo

    if _is_file(name):
        with _function(name) as function:
            return _names(function, but=("classes", "pretrained"))
    if name in BOOK:
        return _names(BOOK[name], but=("classes",))
    if _in_torchvision(name):
        network = inspect.signature(zoo.get_model_builder(name)).return_annotation
        return _names(network, but=("num_classes",), required=False)
    return ["stem", "drop_path"] if _timm_name(name).startswith("convnext") else ["drop_path"]


def _from_torchvision(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    import torchvision.models as zoo

    defaults: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        defaults |= {"aux_logits": False, "init_weights": True}
    if "weights_backbone" in inspect.signature(zoo.get_model_builder(name)).parameters:
        defaults["weights_backbone"] = None
    try:
        return zoo.get_model(name, **{**defaults, **arguments})
    except NotImplementedError:  # RegNet computes its widths with tensors, which the meta device cannot
        with torch.device("cpu"):
            model = zoo.get_model(name, **{**defaults, **arguments})
        return model.to(torch.get_default_device())


def _from_timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    import timm
    from timm.models import ConvNeXt

    given = {key: value for key, value in arguments.items() if key not in ("stem", "drop_path")}
    if (rate := arguments.get("drop_path")) is not None:
        check_share("drop_path", rate)
        given["drop_path_rate"] = rate
    model = timm.create_model(_timm_name(name), **given)
    if (stem := arguments.get("stem")) is not None:
        if not isinstance(model, ConvNeXt) or model.stem[0].stride != (4, 4):
            raise CdlibError(f"{name!r} takes no option 'stem': it is for a ConvNeXt whose stem is a 4x4 patch.")
        set_stem(model.stem, stem)
    return model


def _made(make: Callable[[str, Mapping[str, Any]], nn.Module], name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network by one of the functions above; whatever they raise becomes a CdlibError."""
    try:
        return make(name, arguments)
    except CdlibError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items() if key != "weights")
        known = "" if make is _from_timm else f"; its options: {', '.join(options(name)) or 'none'}"
        raise CdlibError(f"cannot build {name!r} with {given or 'no options'} ({one_line(error)}){known}.") from error


def _pretrained(name: str, fresh: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """Build `name` again with ImageNet weights, and put in every layer of `fresh` that these do not fit."""
    options = {key: value for key, value in options.items() if key != "stem"}
    if _in_torchvision(name):
        if name in BOOK and "drop_path" in options:
            options["stochastic_depth_prob"] = options.pop("drop_path")
        weights, make = of_torchvision(name), _from_torchvision
    elif name == "efficientnet_lite0":
        fresh.network = _pretrained("tf_efficientnet_lite0", fresh.get_submodule("network"), {})
        return fresh
    elif name in BOOK:
        raise CdlibError(f"{name!r} is the book's own and has no ImageNet weights: build it with pretrained=False.")
    else:
        weights, make = of_timm(_timm_name(name)), _from_timm
    with fetching(name, weights):  # `fresh` was built with the same options: nothing else can fail
        model = _made(make, name, {**weights.arguments, **options})
        weights.fill(model)
    shapes = {key: value.shape for key, value in model.named_parameters()}
    for path, module in list(fresh.named_modules()):
        own = {f"{path}.{key}": value.shape for key, value in module.named_parameters(recurse=False)}
        if any(shape != shapes[key] for key, shape in own.items() if path):
            model.set_submodule(path, module)
    return model


def _from_file(name: str, classes: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    with _function(name) as function:
        taken = _names(function)
        arguments = {key: value for key, value in (("classes", classes), ("pretrained", pretrained)) if key in taken}
        if pretrained and "pretrained" not in taken:
            raise CdlibError(f"{name} takes no 'pretrained': add the parameter, or build it with pretrained=False.")
        if not _takes_any(function):
            _check(name, options, _names(function, but=("classes", "pretrained")))
        try:
            model = function(**arguments, **options)
        except Exception as error:
            raise CdlibError(f"{name} raised {one_line(error)}.") from error
    if not isinstance(model, nn.Module):
        raise CdlibError(f"{name} returned {type(model).__name__}, not a torch.nn.Module.")
    return model


@contextmanager
def _function(name: str) -> Iterator[Callable[..., Any]]:
    """Run the file of `path/to/file.py:function` and yield the function; files beside it can be imported meanwhile."""
    path, _, wanted = name.rpartition(":") if ".py:" in name else (name, "", "")
    file = Path(path).expanduser()
    if not wanted:
        raise CdlibError(f"{name} names no function: give path/to/file.py:function, which returns a torch.nn.Module.")
    if not file.is_file():
        raise CdlibError(f"{file} is not a file: give path/to/file.py:function, relative to {Path.cwd()} or absolute.")
    spec = importlib.util.spec_from_file_location(f"_cdlib_file_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    folder = str(file.resolve().parent)
    sys.modules[spec.name] = module
    sys.path.insert(0, folder)
    try:
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise CdlibError(f"{file} cannot be run: it raised {one_line(error)}.") from error
        function = getattr(module, wanted, None)
        if not callable(function):
            functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
            raise CdlibError(f"{file}: {unknown('function', wanted, functions)}")
        yield function
    finally:
        sys.path.remove(folder)


def _is_file(name: str) -> bool:
    return ".py:" in name or name.endswith(".py")


def _in_torchvision(name: str) -> bool:
    import torchvision.models as zoo

    return name in zoo.list_models()


def _timm_name(name: str) -> str:
    """Return the name as timm knows it, or raise with the nearest of all the names there are."""
    import timm

    short = name.removeprefix("timm:")
    if timm.is_model(short):
        return short
    known = [f"timm:{other}" for other in timm.list_models()] if name != short else [*names(), *timm.list_models()]
    error = unknown("model", name, known)
    hint = "" if "did you mean" in str(error) else f" The book, torchvision and timm lack it: {_NO_NAMES}."
    raise CdlibError(f"{error}{hint}")


def _names(function: Callable[..., Any], *, but: Iterable[str] = (), required: bool = True) -> list[str]:
    """Return the parameters a function takes by name, with or without those that have no default."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        key
        for key, value in inspect.signature(function).parameters.items()
        if value.kind in named and key not in but and (required or value.default is not inspect.Parameter.empty)
    ]


def _takes_any(function: Callable[..., Any]) -> bool:
    return any(value.kind is inspect.Parameter.VAR_KEYWORD for value in inspect.signature(function).parameters.values())


def _check(name: str, options: Iterable[str], taken: list[str]) -> None:
    for option in options:
        if option not in taken:
            hint = "" if taken else " It takes none."
            raise CdlibError(f"{name}: {unknown('option', option, taken)}{hint}")
