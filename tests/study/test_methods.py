"""The pruning experiment: every method ends with a record, what it cost is counted, and a killed run goes on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from cdlib import data, find_groups, models, pruning, train
from cdlib.complexity import profile
from cdlib.errors import CdlibError
from cdlib.study import store, sweeps
from cdlib.study.methods import METHODS, prune_and_train
from cdlib.study.runs import alone, run
from cdlib.torch_state import tensors_of

RECIPE = {"epochs": 2, "batch_size": 256, "optimizer": "sgd", "lr": 0.05}
STEPS = 5  # an epoch: 1,437 - 144 training images of the digits in batches of 256
SOME: dict[str, dict[str, Any]] = {
    "dense": {},
    "switched_off": {"parameter": "weight"},
    "complexity_driven": {"mode": "FA", "target": 0.4},
    "uniform_width": {"mode": "PA", "target": 0.4},
    "random_draw": {"mode": "MA", "target": 0.4},
    "ranking": {"target": 0.4, "resource": "macs", "fine_tune": {"epochs": 1}},
    "unstructured": {"conv": 0.6, "linear": 0.6, "fine_tune": {"epochs": 1}},
    "ticket": {"conv": 0.6, "linear": 0.6, "rewind": 1},
    "hesso": {"target": 0.4, "start_epochs": 0, "prune_epochs": 1, "periods": 2},
    "dhspg": {"target": 0.4, "start_epochs": 0, "prune_epochs": 1},
}


def parameters(name: str, **method: Any) -> dict[str, Any]:
    return {
        "data": "digits",
        "model": "vgg_mini",
        "options": {"in_channels": 1},
        "recipe": RECIPE,
        "runs": 1,
        "method": {"name": name, **SOME.get(name, {}), **method},
    }


def dense_macs() -> int:
    return profile(models.build("vgg_mini", 10, in_channels=1), torch.zeros(1, 1, 8, 8)).macs


def test_every_method_is_tried_here() -> None:
    assert SOME.keys() == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_measured_and_its_training_counted(name: str, tmp_path: Path) -> None:
    found = run("pruning", prune_and_train, parameters(name), record_in=tmp_path)["metrics"]
    full, epoch = dense_macs(), STEPS * 256
    assert found["dense_macs"] == full
    if name in ("dense", "switched_off", "hesso", "dhspg"):
        assert found["train_macs"] == 3 * full * 2 * epoch
    elif name == "ranking":
        assert found["train_macs"] == 3 * (full * 2 + found["macs"]) * epoch
        assert found["macs"] <= 0.6 * full
    elif name == "unstructured":
        assert found["train_macs"] == 3 * full * 3 * epoch
        assert found["storage"]["bitmask"] < found["storage"]["dense"] == found["dense_storage"]["dense"]
        assert 0.39 * found["params"] < found["nonzero_params"] < 0.42 * found["params"]
    elif name == "ticket":
        assert found["train_macs"] == 3 * full * 4 * epoch
        assert 0.39 * found["params"] < found["nonzero_params"] < 0.42 * found["params"]
    else:
        assert found["train_macs"] == 3 * found["macs"] * 2 * epoch
        assert "dense_accuracy" not in found
    if name == "switched_off":  # without weights, one class is what the last bias says
        labels = data.load("digits").test.labels
        shares = [(labels == k).double().mean().item() for k in range(10)]
        assert min(abs(found["accuracy"] - share) for share in shares) < 1e-9
        assert found["nonzero_params"] < 0.01 * found["dense_nonzero_params"]
    if name in ("hesso", "dhspg"):
        assert found["sparsity"] == pytest.approx(0.4, abs=0.01)
        assert found["difference"] < 1e-5
        assert found["accuracy"] == found["dense_accuracy"]


@pytest.mark.parametrize("start", [{"rewind": 0}, {"rewind": 1}, {"fresh": True}])
def test_a_ticket_starts_from_early_weights_or_from_others(
    start: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, seen = train.fit, []

    def spy(model: Any, *given: Any, **options: Any) -> Any:
        seen.append({name: tensor.clone() for name, tensor in tensors_of(model).items()})
        return fit(model, *given, **options)

    monkeypatch.setattr(train, "fit", spy)
    run("pruning", prune_and_train, parameters("ticket", **{"rewind": 0, **start}), record_in=tmp_path)
    begun, own = seen[-1], None
    torch.manual_seed(0)
    model = models.build("vgg_mini", 10, in_channels=1)
    first = tensors_of(model)["classifier.0.weight"].clone()

    def look(done: int) -> None:
        nonlocal own
        own = tensors_of(model)["classifier.0.weight"].clone() if done == STEPS else own

    fit(model, data.load("digits"), train.Recipe(**RECIPE), seed=0, progress=False, after_step=look)
    assert own is not None
    expected = own if start.get("rewind") else first
    assert torch.equal(begun["classifier.0.weight_orig"], expected) == ("fresh" not in start)
    assert begun["classifier.0.weight_mask"].mean().item() == pytest.approx(0.4, abs=0.01)


def test_the_record_is_of_the_network_a_reader_would_get(tmp_path: Path) -> None:
    found = run("pruning", prune_and_train, parameters("complexity_driven"), seed=3, record_in=tmp_path)["metrics"]
    torch.manual_seed(3)
    dataset = data.load("digits")
    model = models.build("vgg_mini", 10, in_channels=1)
    small = pruning.complexity_driven(model, find_groups(model, dataset.test.input(1)), mode="FA", target=0.4, seed=3)
    small = models.reinitialised(small, 3)
    train.fit(small, dataset, train.Recipe(**RECIPE), seed=3, progress=False)
    assert found["accuracy"] == train.evaluate(small, dataset.test).accuracy


def test_a_budget_of_the_dense_network_is_spent_in_more_epochs(tmp_path: Path) -> None:
    plan = parameters("uniform_width", budget="dense", target=0.6)
    found = run("pruning", prune_and_train, plan, record_in=tmp_path)["metrics"]
    epochs = round(2 * dense_macs() / found["macs"])
    assert epochs > 3
    assert found["train_macs"] == 3 * found["macs"] * epochs * STEPS * 256


def test_the_dense_network_is_trained_once_for_all_that_start_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("pruning", prune_and_train, parameters("dense"), record_in=tmp_path)["metrics"]
    epochs: list[int] = []
    fit = train.fit

    def spy(model: Any, dataset: Any, recipe: Any, **options: Any) -> Any:
        done = Path(options["checkpoint"]).exists()
        epochs.append(0 if done else recipe.epochs)
        return fit(model, dataset, recipe, **options)

    monkeypatch.setattr(train, "fit", spy)
    further = run("pruning", prune_and_train, parameters("dense", fine_tune={"epochs": 1}), record_in=tmp_path)
    assert epochs == [0, 1]
    assert further["metrics"]["train_macs"] == 1.5 * first["train_macs"]
    assert further["metrics"]["train_s"] >= first["train_s"] > 0


def test_the_sweep_makes_what_is_missing_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDLIB_RESULTS", str(tmp_path))
    options: dict[str, Any] = {"data": "digits", "epochs": 1, "runs": 1, "only": ["dense"], "progress": False}
    records = sweeps.sweep("vgg_mini", [0], **options)
    assert [r["parameters"]["method"].get("fine_tune", {}).get("epochs") for r in records] == [None, 1, 1]
    monkeypatch.setattr(sweeps, "prune_and_train", None)
    assert sweeps.sweep("vgg_mini", [0], **options) == records
    assert sweeps.sweep("vgg_mini", [0], **options, first=1) == records[:1]


def test_a_run_that_fails_does_not_keep_a_sweep_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(experiment: str, function: Any, plan: dict[str, Any], *, seed: int) -> dict[str, Any]:
        if plan["method"].get("mode") == "FA":
            raise CdlibError("the loss is nan")
        made.append(plan["method"])
        return {}

    made: list[dict[str, Any]] = []
    monkeypatch.setattr(sweeps, "run", attempt)
    with pytest.raises(CdlibError, match=r"1 of 4 runs failed.*\n  complexity_driven FA 0.5, seed 7: the loss is nan"):
        sweeps.sweep("vgg_mini", [7], first=4, data="digits", progress=False)
    assert [method.get("mode") for method in made] == [None, "PA", "MA"]


def test_a_sweep_leaves_what_another_process_is_at_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDLIB_RESULTS", str(tmp_path / "results"))
    options: dict[str, Any] = {"data": "digits", "epochs": 1, "runs": 1}
    taken, *others = [p for p in sweeps.plans("vgg_mini", **options) if p["method"]["name"] == "unstructured"]
    work = tmp_path / "_build" / "work" / "pruning"
    work.mkdir(parents=True)
    tried = []
    with contextlib.ExitStack() as other_process:
        other_process.enter_context(alone(work / f"{store.key('pruning', taken, 0)}.lock"))

        def attempt(experiment: str, function: Any, plan: dict[str, Any], **given: Any) -> store.Record:
            tried.append(plan)
            if plan == taken:  # or this would wait for ever
                other_process.close()
            return run(experiment, lambda *_: {}, plan, **given)

        monkeypatch.setattr(sweeps, "run", attempt)
        records = sweeps.sweep("vgg_mini", [0], only=["unstructured"], progress=False, **options)
    assert tried == [*others, taken]
    assert [r["parameters"] for r in records] == [taken, *others]


def test_the_sweep_has_the_methods_at_all_their_targets() -> None:
    plans = sweeps.plans("convnext_mini", data="digits")
    found = [(p["method"]["name"], p["method"].get("mode"), p["method"].get("target")) for p in plans]
    for mode in ("PA", "FA", "MA"):
        assert {t for n, m, t in found if n == "complexity_driven" and m == mode} == {0.3, 0.5, 0.7}
    assert {t for n, _, t in found if n in ("hesso", "dhspg")} == {0.5, 0.7}
    least = [p["method"] for p in plans if p["method"]["name"] == "complexity_driven" and "min_width" in p["method"]]
    assert [(m["mode"], m["target"]) for m in least] == [("MA", 0.5), ("MA", 0.7)]
    assert sum(n == "unstructured" for n, _, _ in found) == 11
    assert {n for n, _, _ in found} == set(METHODS)
    for resource in ("params", "macs", "activation_bytes"):  # all modes, and a ranked network, at each
        own = {"PA": "params", "FA": "macs", "MA": "activation_bytes"}
        given = [
            p["method"]
            for p in plans
            if p["method"].get("target") == 0.5 and not {"budget", "min_width"} & {*p["method"]}
        ]
        at = [m for m in given if m.get("stop_at", own.get(m.get("mode"), m.get("resource"))) == resource]
        assert {m["mode"] for m in at if m["name"] == "complexity_driven"} == {"PA", "FA", "MA"}
        assert {m["name"] for m in at} >= {"uniform_width", "random_draw", "ranking"}
    assert len({store.key("pruning", p, 0) for p in plans}) == len(plans)
    names = {p["method"]["name"] for p in sweeps.plans("vgg_mini", data="digits")}
    assert names == {*METHODS} - {"switched_off"}  # there is nothing in it that scales a block


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ranking", {"target": 1.5}, "target=1.5"),
        ("ranking", {"target": 0.9999}, "cannot be reached"),
        ("ranking", {"by": "l9"}, "saliency 'l9'"),
        ("ranking", {"targt": 0.5}, "option: 'targt'.*did you mean 'target'"),
        ("ranking", {"fine_tune": {"epoch": 3}}, "field of a recipe: 'epoch'.*did you mean 'epochs'"),
        ("unstructured", {"conv": 1.5}, "conv=1.5"),
        ("ticket", {"conv": 1.5}, "conv=1.5"),
        ("ticket", {"rewnd": 1}, "option: 'rewnd'"),
        ("dense", {"fine_tune": {"epochs": -1}}, "epochs"),
        ("dense", {"fine_tone": {"epochs": 1}}, "option: 'fine_tone'.*did you mean 'fine_tune'"),
        ("switched_off", {"parameter": "weight", "targt": 1}, "option: 'targt'"),
        ("uniform_width", {"stpe": 2}, "option: 'stpe'.*did you mean 'step'"),
        ("hesso", {"period": 2}, "option: 'period'.*did you mean 'periods'"),
    ],
)
def test_what_is_wrong_with_a_method_shows_before_anything_is_trained(
    name: str, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "fit", None)
    with pytest.raises(CdlibError, match=message):
        prune_and_train(parameters(name, **options), 0, tmp_path)


@pytest.mark.parametrize("key", ["recipe", "runs", "method"])
def test_a_missing_parameter_is_named(key: str, tmp_path: Path) -> None:
    given = parameters("dense")
    del given[key]
    with pytest.raises(CdlibError, match=f"'{key}' is missing"):
        prune_and_train(given, 0, tmp_path)


@pytest.mark.parametrize(("name", "key"), [("ranking", "fine_tune"), ("hesso", "start_epochs"), (None, "name")])
def test_a_missing_option_is_named(name: str | None, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "fit", None)
    given = parameters(name or "dense")
    del given["method"][key]
    with pytest.raises(CdlibError, match=f"'{key}' is missing"):
        prune_and_train(given, 0, tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sweeps.plans("vgg"), "'vgg'"),
        (lambda: sweeps.sweep("vgg_mini", [0], only=["hess"], data="digits"), "did you mean 'hesso'"),
        (lambda: sweeps.sweep("vgg_mini", [], data="digits"), "at least one seed"),
        (lambda: prune_and_train(parameters("x"), 0, Path()), "method 'x'"),
        (lambda: prune_and_train(parameters("random_draw", budget="all"), 0, Path()), "budget 'all'"),
        (lambda: prune_and_train(parameters("switched_off", parameter="scale"), 0, Path()), "parameter 'scale'"),
        (lambda: sweeps.plans("resnet_mini", epochs=0), "epochs"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        call()
