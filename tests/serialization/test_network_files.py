"""Saving and loading: what comes back is what was saved, and a file that is not right is refused in one line."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import cdlib
from cdlib import CdlibError, models
from cdlib.serialization import archive
from cdlib.serialization.network_files import example_input
from cdlib.surgery import history
from cdlib.surgery.history import HISTORY
from cdlib.surgery.removal import rewritten
from cdlib.torch_state import tensors_of

IMAGE = torch.zeros(1, 3, 8, 8)


class Own(nn.Module):
    """A network of a user's own: residual, batch norm, buffers of several kinds."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, width, 3, padding=1, groups=1)
        self.head = nn.Linear(width, 4)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.inner(x).relu()
        return self.head(x.mean((2, 3)))[:, self.order] * self.scale


class Stubborn(nn.Module):
    """Its code insists on the width it was written for, so it has to be rewritten when it is cut."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.expand, self.shrink, self.fixed = nn.Linear(6, width), nn.Linear(width, 6), {"width": width}

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x).relu()
        return self.shrink(y / y.shape[-1] ** 0.5 + 1.0 / self.fixed["width"] - 1.0 / y.shape[-1])


class Tied(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        if tied:
            self.write.weight = self.read.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self.read(x).relu())


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every floating tensor of a network values unlike those of a new one."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors_of(model).values():
        if tensor.is_floating_point():
            tensor.data = (torch.rand(tensor.shape, generator=generator) + 0.1).to(tensor.dtype)
    return model


def half(model: nn.Module, image: Any) -> nn.Module:
    groups = cdlib.find_groups(model, image)
    return cdlib.remove(
        model, cdlib.find_groups(model, image), {g.name: range(0, g.size - 1, 2) for g in groups.prunable}
    )


def assert_same(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = tensors_of(one), tensors_of(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.stride()) == (theirs[name].dtype, theirs[name].stride()), name
        assert torch.equal(tensor, theirs[name]), name
    assert str(one) == str(other)
    assert [m.training for m in one.modules()] == [m.training for m in other.modules()]
    assert getattr(one, HISTORY, None) == getattr(other, HISTORY, None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A saved network of a user's own, cut."""
    cdlib.save(half(shaken(Own()), IMAGE), tmp_path / "own.cdlib")
    return tmp_path / "own.cdlib"


# ------------------------------------------------------------------------------------------------------ what comes back


@pytest.mark.parametrize(("name", "options"), [("vgg_mini", {}), ("convnext_mini", {"stem": 2, "drop_path": 0.1})])
def test_a_network_by_name_comes_back_by_its_recipe(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    image = torch.rand(2, 1, 16, 16)
    model = shaken(models.build(name, 7, in_channels=1, **options)).eval()
    small = half(model, image)
    cdlib.save(small, str(tmp_path / "small.cdlib"))
    same = cdlib.load(str(tmp_path / "small.cdlib"))
    assert_same(small, same)
    assert sum(p.numel() for p in same.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())
    assert torch.equal(small(image), same(image))


def test_what_was_loaded_can_be_cut_saved_and_loaded_again(tmp_path: Path) -> None:
    cdlib.save(half(shaken(models.build("vgg_mini")), IMAGE), tmp_path / "once.cdlib")
    twice = half(cdlib.load(tmp_path / "once.cdlib"), IMAGE)
    cdlib.save(twice, tmp_path / "twice.cdlib")
    same = cdlib.load(tmp_path / "twice.cdlib")
    assert_same(twice, same)
    assert len(getattr(same, HISTORY)) == 1, "two removals are one map of indices"


def test_a_network_that_was_never_cut(tmp_path: Path) -> None:
    for model, fresh in ((shaken(models.build("vgg_mini")), None), (shaken(Own()), Own())):
        cdlib.save(model, tmp_path / "whole.cdlib")
        assert_same(model, cdlib.load(tmp_path / "whole.cdlib", fresh))
        assert example_input(tmp_path / "whole.cdlib") is None


def test_a_class_of_ones_own_is_loaded_into_a_copy(file: Path) -> None:
    fresh = shaken(Own(), seed=1)
    before = copy.deepcopy(fresh)
    same = cdlib.load(file, model=fresh)
    assert_same(half(shaken(Own()), IMAGE), same)
    assert same.inner.in_channels < 8
    assert_same(before, fresh)
    assert not {id(t) for t in tensors_of(fresh).values()} & {id(t) for t in tensors_of(same).values()}


@pytest.mark.parametrize("after", [torch.float32, torch.bfloat16])
def test_modules_that_were_rewritten_are_rewritten_again(tmp_path: Path, after: torch.dtype) -> None:
    x = torch.rand(3, 6)
    once = half(shaken(Stubborn()), x)
    twice = half(once, x).to(after)
    assert rewritten(once) == rewritten(twice) == [""]
    cdlib.save(twice, tmp_path / "twice.cdlib")
    same = cdlib.load(tmp_path / "twice.cdlib", Stubborn())
    assert_same(twice, same)
    assert torch.equal(twice(x.to(after)), same(x.to(after)))


def test_a_removal_that_rewrites_something_else_is_refused(tmp_path: Path) -> None:
    cdlib.save(half(shaken(Stubborn()), torch.rand(1, 6)), tmp_path / "odd.cdlib")

    def other(description: dict[str, Any]) -> None:
        description["removed"][0]["rewritten"] = ["expand"]

    changed(tmp_path / "odd.cdlib", other)
    assert "all has to be rewritten here, and it was expand" in refused(tmp_path / "odd.cdlib", Stubborn())


def test_code_that_follows_by_now_need_not_be_rewritten_again(tmp_path: Path) -> None:
    cdlib.save(half(shaken(Own()), IMAGE), tmp_path / "own.cdlib")

    def once(description: dict[str, Any]) -> None:
        description["removed"][0]["rewritten"] = ["inner"]

    changed(tmp_path / "own.cdlib", once)
    same = cdlib.load(tmp_path / "own.cdlib", Own())
    assert rewritten(same) == [] and torch.equal(same(IMAGE), half(shaken(Own()), IMAGE)(IMAGE))


def test_a_fresh_process_loads_it(tmp_path: Path) -> None:
    small = half(shaken(models.build("vgg_mini")), IMAGE).eval()
    cdlib.save(small, tmp_path / "small.cdlib")
    code = "import cdlib, torch; print(cdlib.load('small.cdlib')(torch.ones(1, 3, 8, 8)).double().sum().item())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(small(torch.ones(1, 3, 8, 8)).double().sum().item(), rel=1e-5)


def test_a_shared_parameter_is_saved_once_and_shared_again(tmp_path: Path) -> None:
    model = half(shaken(Tied()), torch.rand(1, 5))
    cdlib.save(model, tmp_path / "tied.cdlib")
    with safe_open(tmp_path / "tied.cdlib", "pt") as opened:
        assert list(opened.keys()) == ["read.weight"]
    same = cdlib.load(tmp_path / "tied.cdlib", Tied())
    assert same.write.weight is same.read.weight
    assert_same(model, same)
    assert "one parameter in the file and two in the network" in refused(tmp_path / "tied.cdlib", Tied(tied=False))
    cdlib.save(shaken(Tied(tied=False)), tmp_path / "two.cdlib")
    assert "one parameter in the network and two in the file" in refused(tmp_path / "two.cdlib", Tied())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_types_come_back_and_integers_stay(tmp_path: Path, kind: torch.dtype) -> None:
    model = half(shaken(Own()), IMAGE).to(kind)
    model.head.float()
    cdlib.save(model, tmp_path / "typed.cdlib")
    same = cdlib.load(tmp_path / "typed.cdlib", Own())
    assert_same(model, same)
    assert same.stem.weight.dtype == kind and same.head.weight.dtype == torch.float32
    assert same.norm.num_batches_tracked.dtype == torch.int64 and same.flag.dtype == torch.bool


def test_memory_format_and_modes_come_back(tmp_path: Path) -> None:
    model = shaken(Own()).to(memory_format=torch.channels_last)
    model.add_module("volume", nn.Conv3d(2, 3, 2).to(memory_format=torch.channels_last_3d))
    model.norm.eval()
    cdlib.save(model, tmp_path / "last.cdlib")
    fresh = Own()
    fresh.add_module("volume", nn.Conv3d(2, 3, 2))
    same = cdlib.load(tmp_path / "last.cdlib", fresh)
    assert_same(model, same)
    assert same.stem.weight.stride()[1] == 1 and same.volume.weight.stride()[1] == 1
    assert same.training and not same.norm.training
    cdlib.save(model.eval(), tmp_path / "last.cdlib")
    assert not any(module.training for module in cdlib.load(tmp_path / "last.cdlib", fresh).modules())


def test_buffers_outside_the_state_are_kept_and_caches_are_no_fault(tmp_path: Path) -> None:
    model = shaken(Own())
    model.register_buffer("cache", torch.ones(2), persistent=False)
    model.scale.fill_(0.75)
    cdlib.save(model, tmp_path / "cache.cdlib")
    assert cdlib.load(tmp_path / "cache.cdlib", Own()).scale.item() == 0.75


def test_views_of_a_larger_memory_are_saved_alone(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    memory = torch.rand(1000)
    model.weight.data, model.bias.data = memory[:16].view(4, 4), memory[20:24]
    model.register_buffer("turned", torch.rand(3, 5).t())
    model.register_buffer("spread", torch.rand(1).expand(4))
    cdlib.save(model, tmp_path / "view.cdlib")
    assert (tmp_path / "view.cdlib").stat().st_size < 1500
    same = cdlib.load(tmp_path / "view.cdlib", model)
    assert all(torch.equal(tensor, getattr(model, name)) for name, tensor in tensors_of(same).items())


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    cdlib.save(models.build("vgg_mini"), tmp_path / "vgg.cdlib")
    before = torch.get_rng_state()
    cdlib.load(tmp_path / "vgg.cdlib")
    assert torch.equal(torch.get_rng_state(), before)


def test_on_the_meta_device_it_has_shapes_only(tmp_path: Path) -> None:
    small = half(models.build("vgg_mini"), IMAGE)
    cdlib.save(small, tmp_path / "small.cdlib")
    x = torch.zeros(1, 6)
    own = half(Stubborn(), x)
    cdlib.save(own, tmp_path / "own.cdlib")
    with torch.device("meta"):
        found = cdlib.load(tmp_path / "small.cdlib"), cdlib.load(tmp_path / "own.cdlib", Stubborn())
    for same, model, image in zip(found, (small, own), (IMAGE, x), strict=True):
        assert all(tensor.is_meta for tensor in same.parameters())
        assert [p.shape for p in same.parameters()] == [p.shape for p in model.parameters()]
        assert cdlib.profile(same, image).macs == cdlib.profile(model, image).macs
    content = (tmp_path / "own.cdlib").read_bytes()
    (tmp_path / "own.cdlib").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with torch.device("meta"):
        assert "another digest" in refused(tmp_path / "own.cdlib")


def test_the_input_of_the_last_removal_is_kept(tmp_path: Path) -> None:
    cdlib.save(half(models.build("vgg_mini"), torch.rand(2, 3, 16, 8)), tmp_path / "small.cdlib")
    kept = example_input(tmp_path / "small.cdlib")
    assert isinstance(kept, Tensor) and torch.equal(kept, torch.zeros(2, 3, 16, 8))


def test_inputs_are_written_down_by_shape() -> None:
    tree = (torch.ones(2, 3, dtype=torch.int32), [None, True, 1.5, "x"], {"a": (torch.ones(()),), 2: ()})
    again = history.from_json(history.to_json(tree))
    assert torch.equal(again[0], torch.zeros(2, 3, dtype=torch.int32)) and again[0].dtype == torch.int32
    assert again[1] == tree[1] and again[2][2] == () and again[2]["a"][0].shape == ()
    assert history.is_complete(history.to_json(tree))
    unknown = history.to_json([tree, {"kind": nn.ReLU}])
    assert not history.is_complete(unknown)
    with pytest.raises(CdlibError, match="'type' cannot be made again"):
        history.from_json(unknown)


def test_nothing_is_unpickled(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, forbidden)
    cdlib.load(file, Own())


def test_the_recipe_survives_copies_and_keeps_no_folder(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\ndef make(classes):\n    return nn.Linear(2, classes)\n")
    name = f"{tmp_path}/net.py:make"
    model = copy.deepcopy(models.build(name, 3))
    assert getattr(model, models.RECIPE) == {"name": name, "classes": 3, "options": {}}
    cdlib.save(model, tmp_path / "net.cdlib")
    assert str(tmp_path).encode() not in (tmp_path / "net.cdlib").read_bytes()
    assert "build('path/to/net.py:make', 3)" in refused(tmp_path / "net.cdlib")
    assert_same(model, cdlib.load(tmp_path / "net.cdlib", models.build(name, 3)))


def test_options_that_json_does_not_have_need_the_network(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return models.build("resnet18", norm_layer=nn.InstanceNorm2d)

    model = build()
    cdlib.save(model, tmp_path / "norm.cdlib")
    assert "holds a ResNet, which cdlib does not know by name" in refused(tmp_path / "norm.cdlib")
    assert_same(model, cdlib.load(tmp_path / "norm.cdlib", build()))


OLD: dict[str, tuple[type[nn.Module] | None, list[float]]] = {
    "by_name": (None, [117518.164062, 187175.625, 143055.609375]),
    "own": (Own, [306.525388, 324.510262, 285.125817, 444.951389]),
    "masked": (Own, [144.075577, 116.262375, 0.54914, 231.884033]),
    "rewritten": (Stubborn, [5.784414, 7.269592, 6.305442, 2.914915, 6.855226, 5.455503]),
}
"""Files that cdlib wrote before December 2026: the class, and what the network computed. Two of them were cut twice."""


@pytest.mark.parametrize("name", OLD)
def test_files_that_were_saved_long_ago_still_load(name: str) -> None:
    kind, outputs = OLD[name]
    model = cdlib.load(Path(__file__).parent / "data" / f"{name}.cdlib", kind() if kind else None)
    x = torch.arange(6.0).reshape(1, 6) if kind is Stubborn else torch.arange(192).reshape(1, 3, 8, 8) / 192
    with torch.no_grad():
        found = model(x.to(next(model.parameters()).dtype))
    torch.testing.assert_close(found[0].double(), torch.tensor(outputs).double(), rtol=1e-5, atol=1e-5)
    assert bool(rewritten(model)) == (kind is Stubborn)
    assert next(model.parameters()).dtype == (torch.float64 if name == "own" else torch.float32)
    assert any(key.endswith("_mask") for key in tensors_of(model)) == (name == "masked")
    assert not model.training and getattr(model, HISTORY)


# --------------------------------------------------------------------------------------------- files that are not right


def refused(path: Path, model: nn.Module | None = None) -> str:
    """Return the one line with which a file is refused; the network that was passed must be as before."""
    before = copy.deepcopy(model)
    with pytest.raises(CdlibError) as caught:
        cdlib.load(path, model)
    if model is not None and before is not None:
        assert_same(before, model)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a file anew with another description and a digest that fits."""
    description, tensors = archive.read(path)
    change(description)
    without = description.pop("without", ())
    tensors = {name: tensor for name, tensor in tensors.items() if name not in without}
    digest = description.pop("digest")
    archive.write(path, description, tensors)
    assert archive.read(path)[0]["digest"] != digest


def test_any_altered_byte_is_noticed(file: Path) -> None:
    content = file.read_bytes()
    assert cdlib.load(file, Own()) is not None
    for at in (*range(0, 8), *range(9, len(content), 97), len(content) - 1):
        if content[at : at + 1] == b" ":
            continue  # padding after the description means nothing
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        refused(file, Own())


def test_truncated_and_foreign_files(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    for length in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        assert "cannot be read" in refused(file, Own())
    file.write_bytes(content + b"more")
    assert "cannot be read" in refused(file, Own())
    torch.save(Own().state_dict(), tmp_path / "state.cdlib")
    assert "cannot be read" in refused(tmp_path / "state.cdlib", Own())
    for metadata in (None, {"format": "pt"}):
        save_file({"x": torch.ones(2)}, tmp_path / "foreign.cdlib", metadata)
        assert "cdlib.save did not write" in refused(tmp_path / "foreign.cdlib", Own())
    for text in ("", "{", "[]", "3", "[" * 100_000):
        save_file({"x": torch.ones(2)}, tmp_path / "foreign.cdlib", {"cdlib": text})
        refused(tmp_path / "foreign.cdlib", Own())


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "is not a file" in refused(tmp_path / "none.cdlib")
    assert "is not a file" in refused(tmp_path)


def test_another_version_is_named(file: Path) -> None:
    text = file.read_bytes()
    file.write_bytes(text.replace(b'\\"version\\": 1', b'\\"version\\": 9'))
    assert (
        f"version 9 of the format, and this cdlib reads 1: use the cdlib that wrote it ({cdlib.__version__})"
        in refused(file, Own())
    )


def test_a_network_is_needed_and_must_be_the_one(file: Path) -> None:
    assert "holds a Own, which cdlib does not know by name: pass the network, load(path, model=Own(...))" in refused(
        file
    )
    assert "holds a Own and not a Tied" in refused(file, Tied())
    assert "holds a Own and not a Sequential" in refused(file, models.build("vgg_mini"))
    assert "was cut already" in refused(file, cdlib.load(file, Own()))
    assert "file's" in refused(file, Own(width=10))
    assert "has no index" in refused(file, Own(width=4))
    with pytest.raises(CdlibError, match="not a torch.nn.Module"):
        cdlib.load(file, "Own")  # type: ignore[arg-type]


def test_a_network_that_was_changed_by_hand_is_named(tmp_path: Path) -> None:
    model = models.build("vgg_mini")
    model.extra = nn.Linear(2, 2)
    cdlib.save(model, tmp_path / "extra.cdlib")
    message = refused(tmp_path / "extra.cdlib")
    assert "it lacks 'extra.bias' (the first of 2 faults)" in message
    assert "if the network was changed after it was built" in message
    fresh = models.build("vgg_mini")
    fresh.extra = nn.Linear(2, 2)
    assert_same(model, cdlib.load(tmp_path / "extra.cdlib", fresh))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(without=["order"]), "the file lacks 'order'"),
        (lambda d: d.update(removed=[]), "'stem.weight' is (8, 3, 3, 3) of float32 and the file's"),
        (lambda d: d["removed"][0].update(slices={"0": ["nothing:0"]}), "no dimension 0 of 'nothing'"),
        (lambda d: d["removed"][0].update(slices={"0-3": ["stem.weight:7"]}), "no dimension 7"),
        (lambda d: d["removed"][0].update(slices={"x": ["stem.weight:0"]}), "does not fit Own"),
        (lambda d: d["removed"].append(3), "does not fit Own"),
        (
            lambda d: d["removed"][0].update(rewritten=["stem"], input={"other": "Thing"}),
            "'Thing' cannot be made again",
        ),
        (lambda d: d["removed"][0].update(rewritten=["stem"], types={"": "no_type"}), "'no_type' is no type"),
        (lambda d: d.update(shared={"head.weight": "stem.weight"}), "head.weight and stem.weight are one parameter"),
    ],
)
def test_descriptions_that_are_wrong(file: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    changed(file, change)
    assert message in refused(file, Own())


@pytest.mark.parametrize("key", ["shared", "training", "removed"])
def test_descriptions_that_lack_something(file: Path, key: str) -> None:
    description, tensors = archive.read(file)
    archive.write(file, {**description, key: 3}, tensors)
    assert f"lacks {key!r}" in refused(file, Own())


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"name": "vgg_mni"}, "did you mean 'vgg_mini'"),
        ({"name": "resnet18"}, "holds a Sequential and not a ResNet"),
        ({"name": "vgg_mini", "classes": 0}, "classes=0"),
        ({"name": "vgg_mini", "classes": 11}, "does not fit Sequential"),
        ({"name": "vgg_mini", "options": {"dict": [["wdth", 3]]}}, "unknown option 'wdth'"),
        ({"name": "resnet18", "options": {"dict": [["weights", "DEFAULT"]]}}, "weights from elsewhere"),
        ({"name": "evil.py:make"}, "load runs no code that a file names"),
        ({"name": 3}, "its recipe is"),
        ({"name": "vgg_mini", "options": []}, "its recipe is"),
    ],
)
def test_recipes_that_cannot_be_followed(tmp_path: Path, recipe: dict[str, Any], message: str) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    cdlib.save(models.build("vgg_mini"), tmp_path / "vgg.cdlib")
    changed(tmp_path / "vgg.cdlib", lambda d: d.update(recipe={"classes": 10, "options": {"dict": []}, **recipe}))
    assert message in refused(tmp_path / "vgg.cdlib")


def test_an_integer_is_no_weight(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("count", torch.zeros(3))
    cdlib.save(model, tmp_path / "count.cdlib")
    model.count = torch.zeros(3, dtype=torch.int64)
    assert "its 'count' is (3,) of int64 and the file's (3,) of float32" in refused(tmp_path / "count.cdlib", model)


# ---------------------------------------------------------------------------------------------------- what is not saved


def networks_that_cannot_be_saved() -> dict[str, tuple[nn.Module, str]]:
    sharing = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    sharing[1].weight.data = sharing[0].weight.data
    return {
        "compiled": (torch.compile(nn.Linear(2, 2)), "is compiled"),
        "scripted": (torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), "is compiled"),
        "lazy": (nn.LazyLinear(3), "weight has no shape yet"),
        "meta": (nn.Linear(2, 2, device="meta"), "is on the meta device, where weight has no numbers"),
        "sharing": (sharing, "1.weight and 0.weight share memory"),
        "part": (nn.Sequential(half(Own(), IMAGE), nn.ReLU()), "0 of Sequential was cut by itself"),
        "number": (3, "not a torch.nn.Module"),
        "sparse": (nn.ParameterList([nn.Parameter(torch.eye(3).to_sparse())]), "0 is quantized or sparse"),
        "extra": (Extra(), "Extra keeps '_extra_state'"),
    }  # type: ignore[dict-item]


class Extra(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)

    def get_extra_state(self) -> str:
        return "more"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_is_more_or_less_than_tensors_is_refused(tmp_path: Path) -> None:
    for model, message in networks_that_cannot_be_saved().values():
        with pytest.raises(CdlibError) as caught:
            cdlib.save(model, tmp_path / "no.cdlib")
        assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["nowhere/x.cdlib", "folder", "file/x.cdlib"])
def test_places_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(CdlibError, match="give the path of a file in a folder that exists"):
        cdlib.save(Own(), tmp_path / place)


def test_a_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CdlibError, match="cannot write .*No space left on device"):
        cdlib.save(Own(), file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]
