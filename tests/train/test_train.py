"""Training: one step against updates written by hand, interrupted runs against undisturbed ones, clear refusals."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import in_processes
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor, nn

from cdlib import data, files
from cdlib.errors import CdlibError
from cdlib.torch_state import tensors_of
from cdlib.train import Fit, evaluate, fit
from cdlib.train.recipe import Recipe, average_decay, learning_rate, loss, mixed, optimizer

EVERYTHING = Recipe(
    epochs=3, batch_size=64, lr=0.05, optimizer="sgd", weight_decay=5e-4, label_smoothing=0.1, mixup=0.4, ema=0.95
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads, and the processes started here have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_net(seed: int = 0) -> nn.Module:
    """A network with all kinds of state: batch statistics, dropout, a bare parameter."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def plain_net(seed: int = 0) -> nn.Module:
    """A network without batch statistics or dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )  # fmt: skip


def quiet_fit(model: nn.Module, recipe: Recipe, **options: Any) -> Fit:
    return fit(model, data.load("digits"), recipe, progress=False, **options)


def assert_same_bits(one: Fit, two: Fit) -> None:
    first, second = tensors_of(one.model), tensors_of(two.model)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert one.history.drop(columns="seconds").equals(two.history.drop(columns="seconds"))


def differ(one: Fit, two: Fit) -> bool:
    second = tensors_of(two.model)
    return any(not torch.equal(t, second[name]) for name, t in tensors_of(one.model).items())


# --- the formulas


def test_learning_rate_by_hand() -> None:
    recipe = Recipe(epochs=4, warmup_epochs=1, lr=0.8)  # 10 steps an epoch: 10 of warm-up, 30 of cosine
    rates = {0: 0.08, 4: 0.4, 9: 0.8, 10: 0.8, 20: 0.6, 25: 0.4, 30: 0.2, 39: 0.4 * (1 + math.cos(math.pi * 29 / 30))}
    assert {step: learning_rate(recipe, step, 10) for step in rates} == pytest.approx(rates, rel=1e-12)
    assert learning_rate(Recipe(epochs=1, warmup_epochs=0), 0, 1) == 1e-3
    assert learning_rate(Recipe(epochs=1, warmup_epochs=1), 9, 10) == 1e-3


def test_a_triangle_between_shares_by_hand() -> None:
    recipe = Recipe(epochs=4, warmup_epochs=1, lr=0.8, decay="linear", lr_start=0.2, lr_end=0.1)
    rates = {0: 0.8 * 0.28, 4: 0.8 * 0.6, 9: 0.8, 10: 0.8, 25: 0.8 * 0.55, 39: 0.8 * (0.1 + 0.9 / 30)}
    assert {step: learning_rate(recipe, step, 10) for step in rates} == pytest.approx(rates, rel=1e-12)
    cosine = Recipe(epochs=4, warmup_epochs=1, lr=0.8, lr_end=0.1)
    assert learning_rate(cosine, 25, 10) == pytest.approx(0.8 * 0.55, rel=1e-12)


def test_biases_of_norms_have_a_rate_of_their_own() -> None:
    """After one step of plain SGD, each parameter has moved by its rate times its gradient."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    settings = {"epochs": 1, "optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0}
    recipe = Recipe(**settings, batch_size=1295, augment=False)
    moved = {}
    for scale in (1.0, 64.0):
        copied = copy.deepcopy(net)
        quiet_fit(copied, dataclasses.replace(recipe, norm_bias_lr=scale))
        moved[scale] = {name: p - net.get_parameter(name) for name, p in copied.named_parameters()}
    for name, one in moved[1.0].items():
        torch.testing.assert_close(moved[64.0][name], one * (64 if name == "1.bias" else 1), rtol=2e-3, atol=1e-7)
    assert moved[1.0]["1.bias"].abs().max() > 1e-4


def test_fit_uses_that_rate_and_records_the_last_of_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(epochs=2, batch_size=256, warmup_epochs=0.4, lr=0.01, optimizer="sgd")
    used: list[float] = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (used.append(self.param_groups[0]["lr"]), step(self)))
    history = quiet_fit(plain_net(), recipe).history
    assert used == [learning_rate(recipe, s, 5) for s in range(10)]
    assert used[:2] == [0.005, 0.01]
    assert history["lr"].tolist() == [used[4], used[9]]
    assert history["epoch"].tolist() == [1, 2]


def test_fit_trains_on_the_batches_of_each_epoch() -> None:
    dataset, model, seen = data.load("digits"), plain_net(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]) if torch.is_grad_enabled() else None)
    fit(model, dataset, Recipe(epochs=2, batch_size=500), seed=3, progress=False)
    expected = [
        x for e in range(2) for x, _ in data.batches(dataset.train, 500, augment=True, seed=3, epoch=e, drop_last=True)
    ]
    assert len(seen) == 4
    assert all(torch.equal(x, y) for x, y in zip(seen, expected, strict=True))


def one_step_by_hand(recipe: Recipe, weight: np.ndarray, bias: np.ndarray, split: data.Split) -> list[np.ndarray]:
    """One step of softmax regression on all images at once, in NumPy, float64."""
    x, y = split.input(len(split)).double().flatten(1).numpy(), split.labels.numpy()
    logits = x @ weight.T + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    target = np.eye(10)[y] * (1 - recipe.label_smoothing) + recipe.label_smoothing / 10
    slope = (p - target) / len(y)
    gradients = [slope.T @ x, slope.sum(0)]
    decays = [recipe.weight_decay, 0.0]
    if recipe.optimizer == "sgd":  # the first Nesterov step goes (1 + momentum) times the gradient
        return [
            w - recipe.lr * (1 + recipe.momentum) * (g + d * w)
            for w, g, d in zip((weight, bias), gradients, decays, strict=True)
        ]
    return [  # the first AdamW step: both moments' bias corrections cancel
        w * (1 - recipe.lr * d) - recipe.lr * g / (np.abs(g) + 1e-8)
        for w, g, d in zip((weight, bias), gradients, decays, strict=True)
    ]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_one_step_equals_the_update_written_by_hand(name: str) -> None:
    dataset = data.load("digits")
    recipe = Recipe(
        epochs=1, batch_size=len(dataset.train), optimizer=name, lr=0.02, weight_decay=0.1, warmup_epochs=0,
        label_smoothing=0.1, augment=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    layer = model[1]
    nn.init.normal_(layer.bias)
    before = [layer.weight.detach().double().numpy().copy(), layer.bias.detach().double().numpy().copy()]
    expected = one_step_by_hand(recipe, *before, dataset.train)
    fit(model, dataset, recipe, progress=False)
    for found, wanted, old in zip((layer.weight, layer.bias), expected, before, strict=True):
        moved = wanted - old
        assert np.abs(moved).max() > 1e-3
        # where a gradient is nearly zero (pixels never inked), AdamW's quotient g / (|g| + 1e-8) is all rounding
        clear = np.abs(moved) > 1e-4
        np.testing.assert_allclose((found.detach().double().numpy() - old)[clear], moved[clear], rtol=1e-3, atol=1e-7)


def test_label_smoothing_and_mixup_are_cross_entropy_with_soft_targets() -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    one_hot = torch.eye(4)[y]
    target = 0.7 * one_hot + 0.3 * one_hot[[5, 0, 1, 2, 3, 4]]
    target = 0.8 * target + 0.2 / 4
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(Recipe(label_smoothing=0.2), logits, y, 0.7), expected)
    x = torch.randn(6, 2)
    torch.testing.assert_close(mixed(x, 0.7)[1], 0.7 * x[1] + 0.3 * x[0])
    torch.testing.assert_close(mixed(x, 0.7)[0], 0.7 * x[0] + 0.3 * x[5])


def test_only_tensors_with_several_numbers_per_channel_decay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
            self.batch_norm, self.layer_norm = nn.BatchNorm2d(8), nn.LayerNorm(8)
            self.head, self.frozen = nn.Linear(8, 1), nn.Linear(8, 8)
            self.layer_scale, self.temperature = nn.Parameter(torch.ones(8, 1, 1)), nn.Parameter(torch.ones(()))

    net = Net()
    net.frozen.requires_grad_(False)
    names = {id(p): name for name, p in net.named_parameters()}
    decays = {
        names[id(p)]: group["weight_decay"]
        for group in optimizer(Recipe(weight_decay=0.3), net).param_groups
        for p in group["params"]
    }
    assert {name for name, value in decays.items() if value == 0.3} == {"depthwise.weight", "head.weight"}
    assert {name for name, value in decays.items() if value == 0} == {
        "depthwise.bias", "batch_norm.weight", "batch_norm.bias", "layer_norm.weight", "layer_norm.bias", "head.bias",
        "layer_scale", "temperature",
    }  # fmt: skip


def test_the_average_of_the_weights_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each step: decay min(ema, (1 + t) / (10 + t)) times the average, plus the rest of the new weights."""
    recipe = Recipe(epochs=1, batch_size=500, optimizer="sgd", lr=0.5, ema=0.15)  # two steps
    assert [average_decay(recipe, t) for t in (0, 1, 1000)] == [0.1, 0.15, 0.15]
    model = small_net()
    seen = [tensors_of(model)["6.weight"].clone()]
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: (step(self), seen.append(tensors_of(model)["6.weight"].clone()))
    )
    quiet_fit(model, recipe)
    assert len(seen) == 3
    expected = 0.15 * (0.1 * seen[0] + 0.9 * seen[1]) + 0.85 * seen[2]
    torch.testing.assert_close(tensors_of(model)["6.weight"], expected)
    assert (expected - seen[2]).abs().max() > 1e-3


def test_validation_is_of_the_averaged_weights() -> None:
    dataset = data.load("digits")
    result = fit(small_net(), dataset, EVERYTHING, progress=False)
    again = evaluate(result.model, dataset.validation)
    assert result.history["validation_accuracy"].iloc[-1] == again.accuracy
    assert result.history["validation_loss"].iloc[-1] == again.loss


def test_averaging_does_not_disturb_training() -> None:
    without = dataclasses.replace(EVERYTHING, ema=0.0)
    with_average, plain = quiet_fit(small_net(), EVERYTHING), quiet_fit(small_net(), without)
    assert with_average.history["train_loss"].tolist() == plain.history["train_loss"].tolist()
    assert differ(with_average, plain)


# --- evaluation


def test_evaluate_agrees_with_scikit_learn() -> None:
    split = data.load("digits").test
    model = quiet_fit(small_net(), Recipe(epochs=1, batch_size=64, lr=5e-3)).model
    with torch.no_grad():
        logits = model(split.input(len(split)))
    result = evaluate(model, split, batch_size=50)
    assert result.accuracy == pytest.approx(accuracy_score(split.labels, logits.argmax(1)), abs=1e-12)
    assert 0.2 < result.accuracy < 1
    assert result.loss == pytest.approx(log_loss(split.labels, logits.double().softmax(1)), rel=1e-5)
    assert torch.equal(result.correct, logits.argmax(1) == split.labels)
    assert result.n == len(split) == len(result.correct)
    assert torch.equal(evaluate(model, split, batch_size=7).correct, result.correct)


def test_evaluate_leaves_the_model_as_it_was() -> None:
    model = small_net().train()
    model[1].eval()
    before = {name: t.clone() for name, t in tensors_of(model).items()}
    evaluate(model, data.load("digits").test)
    assert [m.training for m in model] == [True, False, *[True] * 5]
    assert all(torch.equal(t, before[name]) for name, t in tensors_of(model).items())


def test_evaluate_takes_an_exported_model() -> None:
    split, model = data.load("digits").test, small_net().eval()
    exported = torch.export.export(model, (split.input(len(split)),)).module()
    assert torch.equal(evaluate(exported, split, batch_size=len(split)).correct, evaluate(model, split).correct)


# --- learning, bits and global state


def test_a_small_network_learns_the_digits() -> None:
    dataset = data.load("digits")
    result = fit(small_net(), dataset, Recipe(epochs=5, batch_size=32, lr=5e-3, augment=False), progress=False)
    assert evaluate(result.model, dataset.test).accuracy > 0.9
    assert result.history["train_loss"].is_monotonic_decreasing
    assert result.seconds == pytest.approx(result.history["seconds"].sum())


def test_the_test_split_is_never_read() -> None:
    dataset = dataclasses.replace(data.load("digits"), test=None)  # type: ignore[arg-type]
    fit(plain_net(), dataset, Recipe(epochs=1), progress=False)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    one, two = (quiet_fit(small_net(), EVERYTHING, seed=7) for _ in range(2))
    assert_same_bits(one, two)
    assert differ(one, quiet_fit(small_net(), EVERYTHING, seed=8))


@pytest.mark.parametrize("field", ["label_smoothing", "mixup", "ema", "augment", "weight_decay", "momentum"])
def test_every_setting_matters(field: str) -> None:
    recipe = dataclasses.replace(EVERYTHING, epochs=1)
    without = dataclasses.replace(recipe, **{field: type(getattr(recipe, field))(0)})
    assert differ(quiet_fit(plain_net(), recipe), quiet_fit(plain_net(), without))


def test_fit_leaves_global_state_as_it_was() -> None:
    model = small_net().train()
    torch.manual_seed(123)
    torch.use_deterministic_algorithms(False)
    state = torch.get_rng_state()
    quiet_fit(model, EVERYTHING)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_bf16_and_channels_last_train_almost_the_same() -> None:
    recipe = Recipe(epochs=2, batch_size=64, lr=5e-3)
    plain = quiet_fit(small_net(), recipe)
    for change in ({"precision": "bf16"}, {"channels_last": True}):
        other = quiet_fit(small_net(), dataclasses.replace(recipe, **change))
        assert differ(plain, other)
        assert other.history["train_loss"].iloc[-1] == pytest.approx(plain.history["train_loss"].iloc[-1], rel=0.1)
        assert all(p.dtype == torch.float32 and p.is_contiguous() for p in other.model.parameters())


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_network_in_nhwc_comes_back_in_it(channels_last: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(), nn.Linear(32, 10))
    model.to(memory_format=torch.channels_last)
    quiet_fit(model, Recipe(epochs=1, batch_size=64, channels_last=channels_last))
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)


def test_compile_trains_through_the_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiled(model: nn.Module) -> nn.Module:
        model.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    quiet_fit(plain_net(), Recipe(epochs=1, batch_size=256, compile=True))
    assert sum(calls) == 5


def test_the_progress_bar_shows_epoch_loss_accuracy_and_speed(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = data.load("digits")
    fit(plain_net(), dataset, Recipe(epochs=2, batch_size=64))
    shown = capsys.readouterr().err
    assert "epoch 2/2, loss " in shown
    assert "validation 0." in shown
    assert "img/s" in shown
    fit(plain_net(), dataset, Recipe(epochs=1, batch_size=64), progress=False)
    assert capsys.readouterr().err == ""


# --- interrupted runs


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die(how: str, path: Path) -> None:
    """Train with a checkpoint until killed, at a point that `how` names."""
    calls = 0

    def at(
        n: int, original: Callable[..., Any], last_words: Callable[..., None] = lambda *_: None
    ) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == n:
                last_words(*args)
                kill()
            return original(*args, **kwargs)

        return wrapper

    def half(content: Any, file: Any) -> None:
        start = file.tell()
        save(content, file)
        file.truncate(start + (file.tell() - start) // 2)
        file.flush()

    save = torch.save
    match how:  # 20 steps an epoch, 3 epochs
        case "step 3 of epoch 1":
            torch.optim.SGD.step = at(3, torch.optim.SGD.step)
        case "step 11 of epoch 2":
            torch.optim.SGD.step = at(31, torch.optim.SGD.step)
        case "step 20 of epoch 3":
            torch.optim.SGD.step = at(60, torch.optim.SGD.step)
        case "writing checkpoint 2":
            torch.save = at(2, torch.save, half)
        case "before renaming checkpoint 1":
            os.replace = at(1, os.replace)
        case "after renaming checkpoint 2":
            os.replace = at(2, os.replace, os.replace)
    quiet_fit(small_net(), EVERYTHING, seed=5, checkpoint=path)


DEATHS = [
    "step 3 of epoch 1",
    "step 11 of epoch 2",
    "step 20 of epoch 3",
    "writing checkpoint 2",
    "before renaming checkpoint 1",
    "after renaming checkpoint 2",
]
AGAIN = ["step 3 of epoch 1", "before renaming checkpoint 1", "step 11 of epoch 2", "writing checkpoint 2"]
"""Points one run passes in this order; each process counts from its own start, so the last one is in epoch 3."""


def die_in_children(folder: Path) -> None:
    """Let a child be killed in each way, in a run of its own; then one run in the ways of `AGAIN`, in turn."""
    optimizer(EVERYTHING, small_net())
    for name, how in [*((how, how) for how in DEATHS), *(("again", how) for how in AGAIN)]:
        child = os.fork()
        if child == 0:
            die(how, folder / f"{name}.pt")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), how
        assert os.WTERMSIG(status) == signal.SIGKILL, how


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX")
def test_killed_and_rerun_gives_the_bits_of_an_undisturbed_run(tmp_path: Path) -> None:
    in_processes(die_in_children, tmp_path, folder=tmp_path)
    undisturbed = quiet_fit(small_net(), EVERYTHING, seed=5)
    epochs_done = {}
    for name in [*DEATHS, "again"]:
        path = tmp_path / f"{name}.pt"
        epochs_done[name] = len(torch.load(path, weights_only=True)["history"]) if path.exists() else 0
        assert_same_bits(quiet_fit(small_net(), EVERYTHING, seed=5, checkpoint=path), undisturbed)
        assert list(tmp_path.glob(f"{path.name}*")) == [path]
    assert list(epochs_done.values()) == [0, 1, 2, 1, 0, 2, 2]


def test_a_finished_run_is_read_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "run.pt"
    first = quiet_fit(small_net(), EVERYTHING, checkpoint=path)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: pytest.fail("trained again"))
    again = quiet_fit(small_net(), EVERYTHING, checkpoint=path)
    assert_same_bits(first, again)
    assert again.seconds == first.seconds


def test_adamw_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(EVERYTHING, optimizer="adamw", lr=0.01, epochs=2)
    undisturbed = quiet_fit(small_net(), recipe)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", interrupt_after_first(os.replace))
        with pytest.raises(KeyboardInterrupt):
            quiet_fit(small_net(), recipe, checkpoint=tmp_path / "run.pt")
    assert [f.name for f in tmp_path.iterdir()] == ["run.pt"]
    assert_same_bits(quiet_fit(small_net(), recipe, checkpoint=tmp_path / "run.pt"), undisturbed)


def interrupt_after_first(function: Callable[..., Any]) -> Callable[..., Any]:
    done = []

    def wrapper(*args: Any) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(function(*args))

    return wrapper


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": dataclasses.replace(EVERYTHING, lr=0.1)}, "recipe.lr is 0.05 there and 0.1 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"model": small_net(1)}, "it started from other weights"),
        ({"dataset": data.load("digits", split_seed=1)}, "data is "),
        ({"model": plain_net()}, "parameter 1.weight is .8. there and absent here"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    run = {"model": small_net(), "dataset": data.load("digits"), "recipe": EVERYTHING, "progress": False}
    fit(**run, checkpoint=tmp_path / "run.pt")
    before = (tmp_path / "run.pt").read_bytes()
    with pytest.raises(CdlibError, match=f"run.pt is of another run: {message}.*delete the file"):
        fit(**{**run, "model": small_net(), **change}, checkpoint=tmp_path / "run.pt")
    assert (tmp_path / "run.pt").read_bytes() == before


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text", "other"])
def test_a_damaged_checkpoint_names_the_file_to_delete(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    recipe = dataclasses.replace(EVERYTHING, epochs=1)
    quiet_fit(small_net(), recipe, checkpoint=path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes({"truncate": raw[:-100], "flip": raw, "empty": b"", "text": b"hello", "other": b""}[damage])
    if damage == "other":
        torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(CdlibError, match=r"run.pt is damaged \(.*\); delete it to start anew") as caught:
        quiet_fit(small_net(), recipe, checkpoint=path)
    assert "\n" not in str(caught.value)


def test_an_unwritable_checkpoint_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: pytest.fail("trained"))
    with pytest.raises(CdlibError, match=r"cannot write the checkpoint .*choose another folder"):
        quiet_fit(small_net(), EVERYTHING, checkpoint=tmp_path / "file" / "run.pt")


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, save = tmp_path / "run.pt", torch.save
    calls = []

    def full(content: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CdlibError, match="No space left on device"):
        quiet_fit(small_net(), EVERYTHING, checkpoint=path)
    monkeypatch.undo()
    assert [f.name for f in tmp_path.iterdir()] == ["run.pt"]
    assert_same_bits(quiet_fit(small_net(), EVERYTHING, checkpoint=path), quiet_fit(small_net(), EVERYTHING))


# --- divergence


class Breaks(nn.Module):
    """The plain network, whose output is multiplied by `value` in training from the n-th call on."""

    def __init__(self, n: int, value: float) -> None:
        super().__init__()
        self.body, self.n, self.value, self.calls = plain_net(), n, value, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.body(x) * (self.value if self.calls >= self.n and self.training else 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training(value: float, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    recipe = Recipe(epochs=3, batch_size=64, lr=0.01)  # 20 steps an epoch
    with pytest.raises(CdlibError) as caught:
        quiet_fit(Breaks(27, value), recipe, checkpoint=path)
    message = str(caught.value)
    assert "in epoch 2 of 3, step 7 of 20, at learning rate 0.00946: lower lr" in message
    assert f"The checkpoint {path} keeps epoch 1." in message
    assert "\n" not in message
    assert [f.name for f in tmp_path.iterdir()] == ["run.pt"]
    healthy = quiet_fit(Breaks(1000, value), recipe)
    assert_same_bits(quiet_fit(Breaks(1000, value), recipe, checkpoint=path), healthy)


def test_divergence_in_the_last_step_is_found_in_validation() -> None:
    recipe = Recipe(epochs=1, batch_size=1295, warmup_epochs=0, lr=1e38, optimizer="sgd")
    with pytest.raises(CdlibError, match=r"the validation loss is (nan|inf) in epoch 1 of 1, step 1 of 1"):
        quiet_fit(plain_net(), recipe)


# --- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam'; did you mean 'adamw'"),
        ({"precision": "bf32"}, "unknown precision 'bf32'; did you mean"),
        ({"lr": -0.1}, "lr must be a number from 0, not -0.1"),
        ({"lr": 0.0}, "lr must be positive, not 0.0"),
        ({"lr": math.nan}, "lr must be a number from 0, not nan"),
        ({"epochs": 0}, "epochs must be a whole number from 1, not 0"),
        ({"epochs": "3"}, "epochs must be a whole number from 1, not '3'"),
        ({"batch_size": 2.5}, "batch_size must be a whole number from 1, not 2.5"),
        ({"mixup": -1}, "mixup must be a number from 0, not -1"),
        ({"ema": 1}, "ema must be from 0 to below 1, not 1"),
        ({"label_smoothing": 1.5}, "label_smoothing must be from 0 to below 1, not 1.5"),
        ({"warmup_epochs": 11}, "warmup_epochs must be at most epochs = 10, not 11"),
        ({"augment": 1}, "augment must be true or false, not 1"),
        ({"decay": "linaer"}, "unknown decay 'linaer'; did you mean 'linear'"),
        ({"flips": "never"}, "unknown flips 'never'"),
        ({"shift": 1.5}, "shift must be a whole number of pixels, or None, not 1.5"),
        ({"lr_end": 1.1}, "lr_end must be from 0 to 1, not 1.1"),
        ({"norm_bias_lr": -1}, "norm_bias_lr must be a number from 0, not -1"),
    ],
)
def test_a_bad_recipe(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        Recipe(**settings)


def frozen(net: nn.Module) -> nn.Module:
    return net.requires_grad_(False)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (plain_net(), {"batch_size": 1296}, "batch_size 1296 is more than the 1295 images of digits/train"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), {}, "has 7 outputs, but digits has 10 classes; build it with"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(65, 10)),
            {},
            r"cannot take an input of shape \[1, 1, 8, 8\]: RuntimeErr",
        ),
        (
            nn.Conv2d(1, 10, 3),
            {},
            r"must return one tensor \[1, classes\] for 1 images, but returned a tensor \[1, 10, 6",
        ),
        (Pair(), {}, "returned a tuple"),
        (frozen(plain_net()), {}, "no parameter of the model requires a gradient"),
    ],
)
def test_a_model_that_does_not_fit(model: nn.Module, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CdlibError, match=message):
        quiet_fit(model, Recipe(**settings), checkpoint=tmp_path / "run.pt")
    assert list(tmp_path.iterdir()) == []


def test_evaluate_refuses_what_it_cannot_judge() -> None:
    dataset = data.load("digits", validation=0)
    with pytest.raises(CdlibError, match="has 7 outputs, but digits/test has label 9"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), dataset.test)
    with torch.device("meta"):
        hollow = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for use in (lambda: evaluate(hollow, dataset.test), lambda: quiet_fit(hollow, Recipe(epochs=1))):
        with pytest.raises(CdlibError, match="the model is on the meta device, where 1.weight has no numbers"):
            use()
    with pytest.raises(CdlibError, match="digits/validation is empty"):
        evaluate(plain_net(), dataset.validation)


def test_without_validation_images_nothing_is_validated() -> None:
    history = fit(plain_net(), data.load("digits", validation=0), Recipe(epochs=1), progress=False).history
    assert history[["validation_loss", "validation_accuracy"]].isna().all(axis=None)


# --- several processes

SEVERAL = Recipe(epochs=2, batch_size=64, lr=0.05, optimizer="sgd", weight_decay=5e-4)


def in_two_processes(folder: Path) -> None:
    """Run in each of two processes."""
    rank = int(os.environ["RANK"])
    sizes = set()
    model = plain_net(rank)  # the first process's weights are everybody's
    model.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])) if torch.is_grad_enabled() else None)
    plain = quiet_fit(model, SEVERAL)
    assert sizes == {32}
    noisy = quiet_fit(small_net(), EVERYTHING, checkpoint=folder / "noisy.pt")
    again = quiet_fit(small_net(), EVERYTHING, checkpoint=folder / "noisy.pt")
    assert_same_bits(noisy, again)
    for model in (Breaks(27 if rank == 1 else 1000, math.nan), plain_net()):  # both must stop, none may wait
        path = folder / ("noisy.pt" if isinstance(model, Breaks) is False else "breaks.pt")
        with pytest.raises(CdlibError, match=r"epoch 2 of 2, step 7 of 20|of another run"):
            quiet_fit(model, SEVERAL, checkpoint=path)
    with pytest.raises(CdlibError, match="cannot be cut into 2 equal parts"):
        quiet_fit(plain_net(), dataclasses.replace(SEVERAL, batch_size=63))
    results = {
        "plain": tensors_of(plain.model),
        "noisy": tensors_of(noisy.model),
        "loss": plain.history["train_loss"].tolist(),
    }
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_each_other_and_with_one(tmp_path: Path) -> None:
    in_processes(in_two_processes, tmp_path, folder=tmp_path, world=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for net in ("plain", "noisy"):
        assert all(torch.equal(t, second[net][name]) for name, t in first[net].items())
    alone = quiet_fit(plain_net(), SEVERAL)
    for name, t in tensors_of(alone.model).items():
        torch.testing.assert_close(first["plain"][name], t, rtol=1e-3, atol=1e-4)
    assert first["loss"] == second["loss"] == pytest.approx(alone.history["train_loss"].tolist(), rel=1e-4)
