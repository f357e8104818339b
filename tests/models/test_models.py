"""`cdlib.models`: published sizes, options, ImageNet weights without a network, and bad input."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from sklearn.datasets import load_sample_image
from torch import nn

import cdlib
from cdlib import CdlibError, models
from cdlib.models import BOOK, reinitialised

MINIS = ("alexnet_mini", "vgg_mini", "resnet_mini", "mobilenet_mini", "convnext_mini")


def on_meta(name: str, classes: int = 10, **options: object) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, classes, **options)


def profiled(name: str, size: int = 32, classes: int = 10, **options: object) -> cdlib.Profile:
    return cdlib.profile(on_meta(name, classes, **options), torch.empty(1, 3, size, size, device="meta"))


def params(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


# ---------------------------------------------------------------------------------------------------- published sizes


@pytest.mark.parametrize(
    "name",
    ["alexnet", "vgg16", "vgg16_bn", "resnet18", "resnet50", "mobilenet_v2", "googlenet"]
    + [f"convnext_{size}" for size in ("tiny", "small", "base", "large")],
)
def test_imagenet_networks_have_the_parameters_that_torchvision_publishes(name: str) -> None:
    import torchvision.models as zoo

    assert params(on_meta(name, 1000)) == zoo.get_model_weights(name).DEFAULT.meta["num_params"]


# For 10 classes: all parameters and, where the source has them, the MACs of a 3x32x32 image, both in millions.
PUBLISHED = [
    ("alexnet_cifar", 2.47, None, "README of bearpaw/pytorch-classification"),
    ("vgg16_bn_cifar", 15.25, 313.7, "OTOv2, arXiv 2303.06862, the full network on CIFAR-10"),
    ("resnet18_cifar", 11.17, 555.4, "tutorial ResNet18 on CIFAR10 of tianyic/only_train_once"),
    ("resnet50_cifar", 23.52, None, "resnet50 of torchvision less what `test_cifar_...` lists"),
    ("mobilenet_v2_cifar", 2.24, None, "mobilenet_v2 of torchvision less 990 rows of its classifier"),
    ("resnet_mini", 0.27, None, "ResNet-20 in He et al., arXiv 1512.03385, table 6"),
]


@pytest.mark.parametrize(("name", "millions", "macs", "source"), PUBLISHED)
def test_cifar_networks_have_the_published_size(name: str, millions: float, macs: float | None, source: str) -> None:
    found = profiled(name)
    assert round(found.params / 1e6, 2) == millions, source
    if macs is not None:
        assert round(found.macs / 1e6, 1) == macs, source


@pytest.mark.parametrize(
    ("name", "original", "inputs_of_classifier", "stem"),
    [
        ("resnet18_cifar", "resnet18", 512, 64 * 3 * (7 * 7 - 3 * 3)),
        ("resnet50_cifar", "resnet50", 2048, 64 * 3 * (7 * 7 - 3 * 3)),
        ("mobilenet_v2_cifar", "mobilenet_v2", 1280, 0),
    ],
)
def test_cifar_networks_are_the_originals_but_for_stem_and_classifier(
    name: str, original: str, inputs_of_classifier: int, stem: int
) -> None:
    import torchvision.models as zoo

    published = zoo.get_model_weights(original).DEFAULT.meta["num_params"]
    assert params(on_meta(name)) == published - 990 * (inputs_of_classifier + 1) - stem


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("alexnet_cifar", (256, 2, 2)),  # before its last pooling
        ("vgg16_cifar", (512, 2, 2)),
        ("resnet50_cifar", (2048, 4, 4)),
        ("mobilenet_v2_cifar", (1280, 4, 4)),
    ],
)
def test_cifar_networks_keep_a_map_to_the_last_convolution(name: str, shape: tuple[int, ...]) -> None:
    layers = profiled(name).layers
    assert tuple(layers[layers.kind == "Conv2d"].output_shape.iloc[-1])[1:] == shape


# Francy and Singh (arXiv 2409.02134), 10 classes at 32x32: MACs as thop counts them, over 2^20; and exact parameters.
CONVNEXT = [
    ("tiny", (96, 192, 384, 768), (3, 3, 9, 3), 86.88, 27_827_818),
    ("small", (96, 192, 384, 768), (3, 3, 27, 3), 169.28, 49_462_378),
    ("base", (128, 256, 512, 1024), (3, 3, 27, 3), 299.20, 87_576_714),
    ("large", (192, 384, 768, 1536), (3, 3, 27, 3), 669.30, 196_245_706),
]


@pytest.mark.parametrize(("size", "widths", "depths", "paper", "exact"), CONVNEXT)
def test_convnext_has_the_papers_complexity(
    size: str, widths: tuple[int, ...], depths: tuple[int, ...], paper: float, exact: int
) -> None:
    found = profiled(f"convnext_{size}")
    assert found.params == exact
    # thop adds 4 per element that a block's LayerNorm sees, and 2 per channel for the global average pool.
    normalised = sum(d * w * m * m for d, w, m in zip(depths, widths, (8, 4, 2, 1), strict=True))
    assert round((found.macs + 4 * normalised + 2 * widths[-1]) / 2**20, 2) == paper


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_timm_and_torchvision_agree_on_convnext(size: str) -> None:
    ours, theirs = profiled(f"convnext_{size}", stem=2), profiled(f"timm:convnext_{size}", stem=2)
    assert (ours.params, ours.macs) == (theirs.params, theirs.macs)


def test_mini_convnext_costs_what_the_study_planned_with() -> None:
    found = profiled("convnext_mini")
    assert found.params == 1_597_834
    assert found.macs == 57_780_736  # 57.8 M, 0.017 PFLOP for an epoch of 50,000 images, forward and backward
    assert round(6 * found.macs * 50_000 / 1e15, 3) == 0.017


def test_names_are_unique_and_hold_book_and_torchvision() -> None:
    names = models.names()
    assert len(set(names)) == len(names)
    assert {*MINIS, "resnet18_cifar", "convnext_large", "resnet18", "vit_b_16"} <= set(names)
    assert "fcn_resnet50" not in names  # no classifier


def test_the_face_needs_neither_torchvision_nor_timm() -> None:
    code = "import sys, cdlib.models, cdlib.serialization; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torchvision", "timm", "scipy", "sklearn", "matplotlib", "accelerate"} & set(loaded)


# ------------------------------------------------------------------------------------------------------------ running


@pytest.mark.parametrize("name", BOOK)
@pytest.mark.parametrize("classes", [10, 7])
def test_every_book_network_maps_small_images_to_logits(name: str, classes: int) -> None:
    logits = on_meta(name, classes)(torch.empty(2, 3, 32, 32, device="meta"))
    assert logits.shape == (2, classes)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("name", MINIS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_minis_run_and_learn_in_every_layer(name: str, shape: tuple[int, ...]) -> None:
    model = models.build(name, in_channels=shape[0])
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
    idle = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert not idle
    model.eval()
    torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("alexnet_mini", 2), ("vgg_mini", 2), ("resnet_mini", 2), ("mobilenet_mini", 2), ("convnext_mini", 1)],
)
def test_minis_keep_a_map_for_digits(name: str, smallest: int) -> None:
    model = on_meta(name, in_channels=1)
    assert model.features(torch.empty(1, 1, 8, 8, device="meta")).shape[2:] == (smallest, smallest)


def test_alexnet_mini_has_alexnets_imbalance() -> None:
    layers = profiled("alexnet_mini").layers
    linear = layers.index.str.startswith("classifier")
    assert layers.params[linear].sum() > 0.5 * layers.params.sum()
    assert layers.macs[linear].sum() < 0.05 * layers.macs.sum()


@pytest.mark.parametrize("name", ["resnet_mini", "convnext_mini", "convnext_nano"])
def test_weights_come_from_torchs_global_generator(name: str) -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(next(models.build(name).parameters()).detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_auxiliary_classifiers_stay_out() -> None:
    for name in ("googlenet", "inception_v3"):
        assert isinstance(on_meta(name)(torch.empty(2, 3, 96, 96, device="meta")), torch.Tensor)


def test_meta_works_for_networks_that_compute_their_widths() -> None:
    model = on_meta("regnet_y_400mf", 1000)
    assert params(model) == 4_344_144  # torchvision's meta
    assert all(value.is_meta for value in model.parameters())


# ------------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize("name", ["convnext_tiny", "timm:convnext_tiny", "convnext_mini"])
@pytest.mark.parametrize(("stem", "maps"), [(4, 8), (2, 16), (1, 32)])
def test_stem_sets_the_first_map(name: str, stem: int, maps: int) -> None:
    model = on_meta(name, stem=stem)
    first = model.stem if name.startswith("timm:") else model.features[0]
    assert first(torch.empty(1, 3, 32, 32, device="meta")).shape[2:] == (maps, maps)
    assert model(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 10)


def test_a_stem_of_half_the_stride_does_four_times_the_work() -> None:
    macs = {stem: profiled("convnext_tiny", stem=stem).macs for stem in (4, 2, 1)}
    assert macs[2] / macs[4] == pytest.approx(4, rel=0.01)
    assert macs[1] / macs[2] == pytest.approx(4, rel=0.01)
    assert round(6 * macs[2] * 50_000 / 1e15, 3) == 0.109
    assert profiled("convnext_tiny", stem=4).macs == profiled("convnext_tiny").macs


def test_drop_path_reaches_the_last_block_in_both_libraries() -> None:
    from timm.layers import DropPath
    from torchvision.ops import StochasticDepth

    def rates(name: str, **options: object) -> list[float]:
        modules = list(on_meta(name, **options).modules())
        ours = [module.p for module in modules if isinstance(module, StochasticDepth)]
        return ours + [module.drop_prob for module in modules if isinstance(module, DropPath)]

    assert rates("convnext_tiny", drop_path=0.3)[-1] == pytest.approx(0.3)
    assert rates("timm:convnext_tiny", drop_path=0.3)[-1] == pytest.approx(0.3)
    assert rates("convnext_mini", drop_path=0.3)[-1] == pytest.approx(0.3)
    assert max(rates("convnext_small")) == pytest.approx(0.4)  # torchvision's own, which the study must know of
    assert max(rates("convnext_small", drop_path=0.0)) == 0
    assert not rates("timm:convnext_small")


def test_options_are_listed() -> None:
    assert models.options("convnext_mini") == ["in_channels", "stem", "drop_path", "layer_scale"]
    held = models.build("convnext_mini", layer_scale=0.1).named_parameters()
    scales = [parameter for name, parameter in held if "layer_scale" in name]
    assert len(scales) == 6 and all(scale.eq(0.1).all() for scale in scales)
    assert models.options("resnet18_cifar") == []
    assert "zero_init_residual" in models.options("resnet18")


# --------------------------------------------------------------------------------------------------- ImageNet weights


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's folder of checkpoints, empty, and no network."""

    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", unreachable)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def with_noise(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value for key, value in model.state_dict().items()
    }


def test_pretrained_weights_load_all_but_another_classifier(checkpoints: Path) -> None:
    published = with_noise(models.build("mobilenet_v3_small", 1000))
    torch.save(published, checkpoints / "mobilenet_v3_small-047dcff4.pth")
    same = models.build("mobilenet_v3_small", 1000, pretrained=True).state_dict()
    assert all(torch.equal(same[key], published[key]) for key in published)
    ten = models.build("mobilenet_v3_small", 10, pretrained=True).state_dict()
    assert {key for key in published if not torch.equal(ten[key], published[key])} == {
        "classifier.3.weight",
        "classifier.3.bias",
    }
    assert ten["classifier.3.weight"].shape == (10, 1024)


def test_pretrained_convnext_keeps_a_fresh_stem_and_the_drop_path(checkpoints: Path) -> None:
    published = with_noise(models.build("convnext_tiny", 1000))
    torch.save(published, checkpoints / "convnext_tiny-983f1562.pth")
    model = models.build("convnext_tiny", 10, pretrained=True, stem=2, drop_path=0.25)
    state = model.state_dict()
    changed = {key for key in published if not torch.equal(state[key], published[key])}
    assert changed == {"features.0.0.weight", "features.0.0.bias", "classifier.2.weight", "classifier.2.bias"}
    assert model.features[0][0].stride == (2, 2)
    assert model.features[-1][-1].stochastic_depth.p == pytest.approx(0.25)


def test_pretrained_timm_weights_load_from_torchs_folder(checkpoints: Path) -> None:
    from safetensors.torch import save_file

    published = with_noise(models.build("timm:convnext_atto", 1000))
    save_file(published, checkpoints / "convnext_atto.d2_in1k.safetensors")
    state = models.build("timm:convnext_atto", 10, pretrained=True, stem=1).state_dict()
    changed = {key for key in published if not torch.equal(state[key], published[key])}
    assert changed == {"stem.0.weight", "stem.0.bias", "head.fc.weight", "head.fc.bias"}


@pytest.mark.parametrize(
    ("name", "url", "file"),
    [
        ("resnet18", "https://download.pytorch.org/models/resnet18-f37072fd.pth", "resnet18-f37072fd.pth"),
        (
            "timm:convnext_atto",
            "https://huggingface.co/timm/convnext_atto.d2_in1k/resolve/main/model.safetensors",
            "convnext_atto.d2_in1k.safetensors",
        ),
    ],
)
def test_without_a_network_the_error_names_the_file_to_fetch(checkpoints: Path, name: str, url: str, file: str) -> None:
    with pytest.raises(CdlibError) as error:
        models.build(name, pretrained=True)
    assert url in str(error.value)
    assert str(checkpoints / file) in str(error.value)
    assert "no route to host" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(checkpoints.iterdir())


def test_fetching_prints_nothing_and_waits_for_no_dead_server(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patience = []

    def silent(*_: object, **__: object) -> None:
        patience.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(torch.hub, "urlopen", silent)
    before = socket.getdefaulttimeout()
    with pytest.raises(CdlibError, match="cannot fetch the ImageNet weights of 'resnet18'.*timed out"):
        models.build("resnet18", pretrained=True)
    assert capsys.readouterr().out == ""
    assert patience == [20.0] and socket.getdefaulttimeout() == before


def test_the_reason_is_the_systems(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapped(*_: object, **__: object) -> None:
        try:
            raise ConnectionError("name not known")
        except ConnectionError as error:
            raise OSError("please check your connection " * 20) from error

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", wrapped)
    with pytest.raises(CdlibError, match=r"'timm:convnext_atto' \(ConnectionError: name not known\): download https"):
        models.build("timm:convnext_atto", pretrained=True)


def test_a_download_that_is_another_file_is_not_kept(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(io.BytesIO):
        def info(self) -> object:
            return type("Headers", (), {"getheaders": lambda *_: []})()

    monkeypatch.setattr(torch.hub, "urlopen", lambda _: Other(b"another file"))
    with pytest.raises(CdlibError, match="cannot fetch .*invalid hash value.*pretrained=False"):
        models.build("resnet18", pretrained=True)
    assert not list(checkpoints.iterdir())


def test_a_download_that_breaks_off_leaves_nothing(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        def info(self) -> dict[str, str]:
            return {}

        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise ConnectionResetError("connection reset")
            return super().read(4)

    def answer(_: object) -> Broken:
        reply = Broken(b"half a file")
        reply.info = lambda: type("Headers", (), {"getheaders": lambda *_: []})()  # type: ignore[method-assign]
        return reply

    monkeypatch.setattr(torch.hub, "urlopen", answer)
    with pytest.raises(CdlibError, match="connection reset"):
        models.build("resnet18", pretrained=True)
    assert not list(checkpoints.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_a_damaged_file_of_weights_is_named(checkpoints: Path, content: bytes) -> None:
    file = checkpoints / "resnet18-f37072fd.pth"
    file.write_bytes(content)
    with pytest.raises(CdlibError) as error:
        models.build("resnet18", pretrained=True)
    assert str(file) in str(error.value)
    assert "delete it" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_books_own_networks_have_no_imagenet_weights() -> None:
    with pytest.raises(CdlibError, match="resnet18_cifar.*pretrained=False"):
        models.build("resnet18_cifar", pretrained=True)


# ------------------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt18", "did you mean 'resnet18'"),
        ("convnext_minni", "did you mean 'convnext_mini'"),
        ("timm:convnext_tinny", "did you mean 'timm:convnext_tiny'"),
        ("tf_efficientnetv2_bb0", "did you mean 'tf_efficientnetv2_b0'"),
        ("qqqqqqqq", "cdlib.models.names()"),
        ("", "cdlib.models.names()"),
    ],
)
def test_an_unknown_model_names_the_nearest(name: str, message: str) -> None:
    with pytest.raises(CdlibError) as error:
        models.build(name)
    assert message in str(error.value)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("name", [5, None, ["vgg_mini"], nn.Linear])
def test_a_name_that_is_no_text_is_unknown(name: Any) -> None:
    with pytest.raises(CdlibError, match=f"unknown model {re.escape(repr(str(name)))}"):
        models.build(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convnext_tiny", {"stm": 2}, "did you mean 'stem'"),
        ("convnext_tiny", {"stem": 3}, "stem=3"),
        ("convnext_tiny", {"stem": "2"}, "stem='2'"),
        ("convnext_mini", {"drop_path": 1.0}, "drop_path=1.0"),
        ("convnext_mini", {"layer_scale": 0}, "layer_scale=0"),
        ("efficientnet_lite0", {"input_size": 16}, "input_size=16"),
        ("timm:convnext_tiny", {"drop_path": "much"}, "drop_path='much'"),
        ("timm:resnet18", {"stem": 2}, "takes no option 'stem'"),
        ("timm:convnext_atto_ols", {"stem": 2}, "takes no option 'stem'"),
        ("timm:resnet18", {"colour": 2}, "colour=2"),
        ("resnet18_cifar", {"stem": 2}, "takes none"),
        ("resnet18", {"stem": 2}, "its options: zero_init_residual"),
        ("resnet_mini", {"in_channels": 0}, "in_channels=0"),
        ("resnet_mini", {"classes": 0}, "classes=0"),
        ("resnet_mini", {"classes": 2.0}, "classes=2.0"),
        ("raft_large", {}, "raft_large"),
        ("convnext_mini", {"stem": []}, "stem=[]"),
        ("timm:convnext_atto", {"stem": {}}, "stem={}"),
        ("vgg_mini", {"in_channels": 10**20}, "cannot build 'vgg_mini' with classes=10, in_channels=1000"),
        ("vgg_mini", {"classes": 10**20}, "cannot build 'vgg_mini' with classes=1000"),
        ("timm:resnet18", {"classes": 10**20}, "cannot build 'timm:resnet18' with num_classes=1000"),
    ],
)
def test_a_wrong_option_is_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(CdlibError) as error:
        models.build(name, **options)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------ networks from a file

SOURCE = """
from torch import nn
from widths import WIDTH

def plain():
    return nn.Linear(WIDTH, 5)

def sized(classes, bias=True):
    return nn.Linear(WIDTH, classes, bias=bias)

def broken():
    raise RuntimeError("two\\nlines")

def number():
    return 3
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "widths.py").write_text("WIDTH = 4\n")
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "wrong.py").write_text("def f(:\n")
    return tmp_path


def test_a_function_in_a_file_builds_the_network(source: Path) -> None:
    assert models.build(f"{source}/net.py:plain", 10).out_features == 5
    sized = models.build(f"{source}/net.py:sized", 7, bias=False)
    assert (sized.in_features, sized.out_features, sized.bias) == (4, 7, None)
    assert models.options(f"{source}/net.py:sized") == ["bias"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net.py", {}, "names no function"),
        ("net.py:", {}, "names no function"),
        ("none.py:f", {}, "is not a file"),
        ("wrong.py:f", {}, "SyntaxError"),
        ("net.py:plane", {}, "did you mean 'plain'"),
        ("net.py:broken", {}, "RuntimeError: two lines"),
        ("net.py:number", {}, "returned int, not a torch.nn.Module"),
        ("net.py:sized", {"bas": 1}, "did you mean 'bias'"),
        ("net.py:plain", {"pretrained": True}, "pretrained=False"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(source: Path, name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(CdlibError) as error:
        models.build(f"{source}/{name}", **options)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert str(source) in str(error.value)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_of_either_kind_loads(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = with_noise(models.build("vgg_mini"))
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"model": state, "epoch": 3}, tmp_path / "nested.pt")
    old = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"tensors": old, "average": state, "run": {}}, tmp_path / "train.pt")
    save_file(state, tmp_path / "safe.safetensors")
    for name in ("bare.pt", "nested.pt", "train.pt", "safe.safetensors"):
        model = models.build("vgg_mini")
        models.load_weights(model, tmp_path / name)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    model = models.build("vgg_mini")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(with_noise(models.build("vgg_mini", 7)), tmp_path / "seven.pt")
    with pytest.raises(CdlibError, match=r"seven.pt.*'classifier.3.weight' of shape \(7, 64\) instead of \(10, 64\)"):
        models.load_weights(model, tmp_path / "seven.pt")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Surprise:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code ran')",)


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save(models.build("vgg_mini").state_dict(), whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:-1000])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.safetensors").write_bytes(b"hello")
    torch.save(Surprise(), tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("missing.pt", "cut.pt", "empty.pt", "text.safetensors", "code.pt", "list.pt"):
        with pytest.raises(CdlibError) as error:
            models.load_weights(models.build("vgg_mini"), tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def test_weights_are_drawn_anew_for_the_widths_of_now() -> None:
    wide = nn.Sequential(nn.Linear(4, 1000), nn.BatchNorm1d(1000), nn.Linear(1000, 500), nn.Linear(500, 200))
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.fill_(7)
    before = torch.get_rng_state()
    fresh = reinitialised(wide, 3)
    assert torch.equal(torch.get_rng_state(), before)
    first, norm, second, last = fresh
    assert second.weight.std().item() == pytest.approx((2 / 1000) ** 0.5, rel=0.01)  # He: variance 2 / inputs
    assert last.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not any(layer.bias.any() for layer in fresh) and norm.weight.eq(1).all()
    assert wide[0].weight.eq(7).all()
    assert torch.equal(reinitialised(wide, 3)[0].weight, first.weight)
    assert not torch.equal(reinitialised(wide, 4)[0].weight, first.weight)
    for seeded in (lambda seed: reinitialised(wide, seed), lambda seed: models.fresh("vgg_mini", 10, 3, seed)):
        with pytest.raises(CdlibError, match="seed=1844.*: give an integer of at most"):
            seeded(2**64)
    sent = reinitialised(wide, 3, "fan_out")[2].weight
    assert sent.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.01)


def test_layers_that_are_not_trained_keep_their_weights_when_others_are_drawn_anew() -> None:
    model = models.build("plain_cnn", norm_scales=False)
    models.whiten(model, torch.rand(20, 3, 32, 32))
    fresh = reinitialised(model, 3)
    assert torch.equal(fresh.features[0].weight, model.features[0].weight)
    assert not torch.equal(fresh.features[9].weight, model.features[9].weight)


def test_convolutions_that_hand_on_their_inputs_do_so_for_the_widths_of_now() -> None:
    """Cut, such a filter is dead if the input that it hands on is gone."""
    model = models.build("plain_cnn")
    image = torch.rand(1, 3, 32, 32)
    groups = cdlib.find_groups(model, image, keep=["features.0"])
    small = cdlib.remove(model, groups, {groups.prunable[0].name: range(14)})
    assert small.features[6].weight.flatten(1).any(1).sum() == 2
    fresh = reinitialised(small, 3)
    weight = fresh.features[6].weight
    assert weight.shape == (16, 2, 3, 3) and weight.flatten(1).any(1).all()
    assert torch.equal(fresh.features[6](image[:, :2])[:, :2], image[:, :2])
    built = models.fresh("plain_cnn", 10, 3, seed=3)
    assert torch.equal(reinitialised(model, 3).features[2].weight[0], built.features[2].weight[0])
    assert reinitialised(model, 3).classifier[0].weight.abs().max() <= 1 / 8


def test_weights_from_a_package_know_a_palace_and_a_daisy() -> None:
    model = models.build("efficientnet_lite0", 1000, pretrained=True, input_size=224).eval()
    for file, label in {"china.jpg": 698, "flower.jpg": 985}.items():  # the classes of ImageNet: palace, daisy
        image = torch.from_numpy(load_sample_image(file)[:, 106:533].copy()).permute(2, 0, 1).unsqueeze(0)
        assert model((image / 255 - 0.5) / 0.5).argmax().item() == label
    ten = models.build("efficientnet_lite0", pretrained=True, input_size=64)
    assert torch.equal(ten.network.conv_stem.weight, model.network.conv_stem.weight)
    assert ten(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_a_network_of_a_seed_for_images_of_so_many_channels() -> None:
    before = torch.get_rng_state()
    grey = models.fresh("vgg_mini", 7, 1, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    known = models.build("vgg_mini", 7, in_channels=1)
    assert all(torch.equal(a, b) for a, b in zip(grey.parameters(), known.parameters(), strict=True))
    assert grey(torch.zeros(1, 1, 8, 8)).shape == (1, 7)
    assert models.fresh("squeezenet1_1", 7, 3, seed=0)(torch.zeros(1, 3, 32, 32)).shape == (1, 7)  # has no such option
