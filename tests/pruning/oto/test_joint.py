"""What joint training and pruning promises: the target, zeros that stay, the same outputs, states and copies."""

from __future__ import annotations

import copy
import hashlib
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from joint_setup import BASES, METHODS, X, chain, gradient, make
from processes import in_processes
from torch import nn
from torch.nn import functional as F

import cdlib
from cdlib import data, find_groups, models
from cdlib.pruning import dhspg, hesso
from cdlib.pruning.oto.group_sparse import GroupSparse


def train(
    model: nn.Module, optimizer: Any, steps: int, x: torch.Tensor, first: int = 0, net: Any = None
) -> torch.Tensor:
    """Some steps on random images; returns all tensors as one."""
    model.train()
    for t in range(first, first + steps):
        torch.manual_seed(t)
        for group in optimizer.param_groups:
            group["lr"] = 0.02 / (1 + t % 100)  # of all processes the same
        images, labels = torch.randn(4, *x.shape[1:], dtype=x.dtype), torch.randint(0, 10, (4,))
        optimizer.zero_grad()
        F.cross_entropy((net or model)(images), labels).backward()
        optimizer.step()
    return torch.cat([t.detach().flatten().double() for t in model.state_dict().values()])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["vgg_mini", "resnet_mini", "mobilenet_mini", "convnext_mini"])
def test_the_target_is_met_exactly_zeros_stay_and_the_cut_network_computes_the_same(method: str, name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, 10, in_channels=1).double()
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    optimizer = METHODS[method](model, find_groups(model, x), base, 0.53, start=1, steps=4)
    train(model, optimizer, 5, x)
    drop = optimizer.drop()
    wanted = int(0.53 * optimizer.units.count)
    assert sum(map(len, drop.values())) == wanted == optimizer.wanted
    train(model, optimizer, 2, x, first=5)
    assert optimizer.drop() == drop
    groups = find_groups(model, x)
    for group, units in drop.items():
        assert groups[group].zero_invariant and len(units) < groups[group].size
        for tensor, dim in groups[group].own:
            index = torch.from_numpy(groups[group].indices(units, (tensor, dim)))
            assert not model.get_parameter(tensor).index_select(dim, index).any()
    small = cdlib.remove(model, find_groups(model, x), drop)
    images = torch.randn(8, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        full, cut = model.eval()(images), small.eval()(images)
    assert (full - cut).abs().max() <= 1e-9 * full.abs().max()
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_averaged_weights_are_zero_where_units_went(method: str) -> None:
    dataset, made = data.load("digits"), []
    model = models.build("vgg_mini", 10, in_channels=1)
    groups = find_groups(model, x := dataset.test.input(1))

    def wrap(base: torch.optim.Optimizer) -> torch.optim.Optimizer:
        made.append(METHODS[method](model, groups, base, 0.5, start=1, steps=4))
        return made[0]

    recipe = cdlib.train.Recipe(epochs=2, batch_size=256, optimizer="sgd", lr=0.01, ema=0.9)
    cdlib.train.fit(model, dataset, recipe, optimizer=wrap, progress=False)
    small = cdlib.remove(model, groups, made[0].drop())
    assert torch.allclose(small(x), model(x), atol=1e-5)


def test_of_a_convnext_only_the_widths_of_the_mlps_shrink() -> None:
    model = models.build("convnext_mini", 10)
    optimizer = hesso(
        model, find_groups(model, torch.zeros(1, 3, 32, 32)), torch.optim.AdamW(model.parameters()), 0.7, steps=1
    )
    hidden = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features > 10}
    wide = {name: m.out_features for name, m in hidden.items() if m.out_features > m.in_features}
    assert optimizer.units.sizes == wide and len(wide) == 6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [1, 3, 6, 9])
def test_it_resumes_bit_for_bit(method: str, stop: int) -> None:
    x = torch.zeros(1, 1, 8, 8)

    def fresh() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = models.build("resnet_mini", 10, in_channels=1)
        base = torch.optim.AdamW(model.parameters(), lr=1e-2)
        options = {"periods": 2} if method == "hesso" else {}
        return model, METHODS[method](model, find_groups(model, x), base, 0.5, start=2, steps=6, **options)

    model, optimizer = fresh()
    whole = train(model, optimizer, 10, x)
    model, optimizer = fresh()
    train(model, optimizer, stop, x)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    model, optimizer = fresh()
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    assert torch.equal(whole, train(model, optimizer, 10 - stop, x, first=stop))


@pytest.mark.parametrize("method", METHODS)
def test_training_of_the_package_takes_it_and_resumes_it(method: str, tmp_path: Path) -> None:
    dataset = data.load("digits")
    recipe = cdlib.train.Recipe(epochs=3, batch_size=256, optimizer="sgd", lr=0.05)
    steps = len(dataset.train) // 256
    example = dataset.test.input(1)

    class Stop(Exception):
        pass

    def run(checkpoint: Path | None, stop: int | None = None) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model, made = models.build("vgg_mini", 10, in_channels=1), []

        def wrap(base: torch.optim.Optimizer) -> GroupSparse:
            made.append(METHODS[method](model, find_groups(model, example), base, 0.5, start=steps, steps=steps))
            return made[0]

        def interrupt(step: int) -> None:
            if step == stop:
                raise Stop

        cdlib.train.fit(
            model, dataset, recipe, optimizer=wrap, checkpoint=checkpoint, progress=False, after_step=interrupt
        )
        return model, made[0]

    model, optimizer = run(None)
    assert optimizer.sparsity == pytest.approx(0.5, abs=1 / optimizer.units.count)
    with pytest.raises(Stop):
        run(tmp_path / "c.pt", stop=2 * steps + 1)
    again, optimizer = run(tmp_path / "c.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    small = cdlib.remove(again, find_groups(again, example), optimizer.drop())
    full = cdlib.train.evaluate(again, dataset.test)
    assert torch.equal(full.correct, cdlib.train.evaluate(small, dataset.test).correct)


def in_each_process(method: str, folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    torch.manual_seed(0)
    model = models.build("vgg_mini", 10, in_channels=1)
    x = torch.zeros(1, 1, 8, 8)
    for m in model.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
            m.momentum = 0.0  # its statistics are each process's own
    base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    net, optimizer = accelerator.prepare(
        model, METHODS[method](model, find_groups(model, x), base, 0.5, start=1, steps=4)
    )
    train(model, optimizer, 6, x, first=100 * accelerator.process_index, net=net)
    drop = optimizer.optimizer.drop()
    cdlib.remove(model, find_groups(model, x), drop)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    text = f"{hashlib.sha256(weights.numpy().tobytes()).hexdigest()} {sum(map(len, drop.values()))} {drop}"
    (folder / str(accelerator.process_index)).write_text(text)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_have_identical_weights(method: str, tmp_path: Path) -> None:
    in_processes(in_each_process, method, tmp_path, folder=tmp_path, world=2)
    one, other = ((tmp_path / name).read_text() for name in ("0", "1"))
    assert one == other
    assert int(one.split()[1]) == math.floor(0.5 * sum([16, 16, 32, 32, 64, 64, 64]))


@pytest.mark.parametrize("method", METHODS)
def test_norms_in_higher_precision_than_the_rest(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).bfloat16()
    model[1].float()
    x = torch.randn(4, 3, 8, 8, dtype=torch.bfloat16)
    optimizer = METHODS[method](
        model, find_groups(model, x[:1]), torch.optim.SGD(model.parameters(), lr=0.01), 0.5, steps=3
    )
    for _ in range(4):
        optimizer.zero_grad()
        model(x).float().square().mean().backward()
        optimizer.step()
    assert optimizer.sparsity == 0.5
    assert [p.dtype for p in model[:2].parameters()] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    cut = cdlib.remove(model, find_groups(model, x[:1]), optimizer.drop())
    assert torch.equal(cut.eval()(x), model.eval()(x))


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_with_the_network_goes_on_alike(method: str) -> None:
    model = chain()
    optimizer = METHODS[method](model, find_groups(model, X), BASES["momentum"](model.parameters()), 0.5, steps=6)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 3, dtype=torch.float64)).square().sum().backward()
        optimizer.step()

    for _ in range(3):
        step(model, optimizer)
        schedule.step()
    twin, other = copy.deepcopy((model, optimizer))
    for _ in range(4):
        step(model, optimizer)
        step(twin, other)
    assert other.sparsity == optimizer.sparsity == pytest.approx(0.5, abs=0.05)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b) and a is not b


class Halves(nn.Module):
    """Two branches read a half each of one convolution, so two groups own rows of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.both(x).relu().chunk(2, 1)
        return self.head(torch.cat([self.a(one).relu(), self.b(two).relu()], 1).mean((2, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_groups_that_share_a_parameter_of_which_one_is_cut(method: str) -> None:
    torch.manual_seed(1)
    model = Halves().double()
    with torch.no_grad():
        model.both.weight[:4] *= 0.1
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    optimizer = METHODS[method](
        model, find_groups(model, x[:1]), torch.optim.SGD(model.parameters(), lr=0.05), 0.1, steps=3
    )
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(8) % 4).backward()
        optimizer.step()
    drop = optimizer.drop()
    assert sum(map(len, drop.values())) == 2
    torch.testing.assert_close(
        cdlib.remove(model, find_groups(model, x[:1]), drop)(x), model(x), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "lr"), [(torch.float32, 1e-30), (torch.float16, 0.01)])
def test_small_numbers_leave_every_group_its_units(method: str, dtype: torch.dtype, lr: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    x = torch.randn(4, 4).to(dtype)
    optimizer = METHODS[method](
        model, find_groups(model, x[:1]), torch.optim.SGD(model.parameters(), lr=lr), 0.5, steps=2, min_width=3
    )
    for _ in range(3):
        optimizer.zero_grad()
        (1e-3 * model(x).float().square().sum()).backward()
        optimizer.step()
    assert sum(map(len, optimizer.drop().values())) == 8
    assert all(len(units) <= 5 for units in optimizer.drop().values())


def test_groups_that_the_base_does_not_train_are_left_out() -> None:
    model = chain()
    model[0].bias.requires_grad_(False)
    assert make(model=model).units.sizes == {"2": 5}


@pytest.mark.parametrize("method", METHODS)
def test_every_group_keeps_a_least_width(method: str) -> None:
    for least, kept in ((1, {6, 3, 1}), (2, {6, 3, 2})):
        model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()
        with torch.no_grad():
            model[2].weight.mul_(1e-3)
            model[2].bias.mul_(1e-3)
        optimizer = make(METHODS[method], model, target=0.35 + 0.01 * least, min_width=least)
        for t in range(4):
            for name, p in model.named_parameters():
                p.grad = 1e-3 * torch.from_numpy(gradient(name, p.detach().numpy(), t))
            optimizer.step()
        left = 6 - len(optimizer.drop().get("2", []))
        assert left >= least
        assert left in kept


def test_a_unit_that_is_zero_when_it_is_chosen_stays_so() -> None:
    model = chain()
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = 0
    optimizer = make(dhspg, model, target=0.2, steps=50)
    for t in range(3):
        for name, p in model.named_parameters():
            p.grad = torch.from_numpy(gradient(name, p.detach().numpy(), t))
        optimizer.step()
        assert 2 in optimizer.drop()["0"]
        assert not model[0].weight[2].any()
        assert model[0].bias[2] == 0
