"""The command `cdlib`: what it prints where, its exit codes, and one line for everything a user can get wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import cdlib
from cdlib import models
from cdlib.cli.app import app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="cdlib")


def printed(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(*arguments: str) -> str:
    """Return the one line on standard error with which a command refuses."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


# ------------------------------------------------------------------------------------------------------------ profile


def test_profile_prints_layers_and_totals_in_decimal_units() -> None:
    text = printed("profile", "convnext_small", "--input", "3x32x32", "--classes", "10")
    assert "49.46 M" in text and "49,462,378" in text
    assert "177.2 M" in text and "FLOPs = 2 x MACs" in text
    assert "M = 10^6" in text
    layer = next(line for line in text.splitlines() if line.strip().startswith("features.0.0 "))
    assert layer.split()[1:5] == ["Conv2d", "1x96x8x8", "4.704", "k"]


def test_profile_json_is_the_profile_and_nothing_else() -> None:
    found = json.loads(printed("profile", "vgg_mini", "--classes", "7", "--json"))
    expected = cdlib.profile(models.build("vgg_mini", 7), torch.zeros(1, 3, 32, 32))
    assert found["totals"]["macs"] == expected.macs
    assert found["totals"]["params"] == expected.params
    assert [row["layer"] for row in found["layers"]] == list(expected.layers.index)
    assert sum(row["macs"] for row in found["layers"]) == expected.macs
    assert "layers" not in json.loads(printed("profile", "vgg_mini", "--no-layers", "--json"))


def test_profile_passes_options_on() -> None:
    def macs(*options: str) -> int:
        settings = [part for option in options for part in ("--option", option)]
        return int(json.loads(printed("profile", "convnext_mini", "--json", *settings))["totals"]["macs"])

    assert macs() == macs("stem=2", "drop_path=0.1") == 57_780_736
    assert macs("stem=1") > 3.9 * macs()


def test_minis_take_the_channels_of_the_input() -> None:
    assert "one sample of 1x8x8" in printed("profile", "resnet_mini", "--input", "1x8x8")


def test_totals_keep_their_labels() -> None:
    found = cdlib.profile(models.build("vgg_mini"), torch.zeros(1, 3, 32, 32))
    text = printed("profile", "vgg_mini", "--no-layers")
    for label, exact in (("params", found.params), ("MACs", found.macs), ("weights", found.weight_bytes)):
        assert any(line.strip().startswith(label) and f"{exact:,}" in line for line in text.splitlines())


def test_a_pipe_gets_whole_plain_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cdlib.cli", "profile", "vgg_mini"]
    environment = {
        "PATH": "",
        "COLUMNS": "20",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(cdlib.__file__).parents[1]),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    assert "\x1b" not in done.stdout and "…" not in done.stdout
    assert any("classifier.3" in line and "Linear" in line and "kB" in line for line in done.stdout.splitlines())
    assert done.stderr == ""


def test_help_imports_nothing_slow() -> None:
    slow = {"torchvision", "timm", "matplotlib", "sklearn", "accelerate", "jupytext"}
    code = f"import sys, cdlib.cli; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_and_version() -> None:
    assert all(
        name in printed("--help") for name in ("profile", "compare", "groups", "prune", "study", "data", "results")
    )
    assert printed("--version") == f"cdlib {cdlib.__version__}\n"


# ------------------------------------------------------------------------------------------------------------ compare


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    torch.save(models.build("vgg_mini", in_channels=1).state_dict(), tmp_path / "vgg.pt")
    return tmp_path / "vgg.pt"


def test_compare_without_data_compares_cost() -> None:
    found = json.loads(printed("compare", "vgg_mini", "resnet_mini", "--runs", "2", "--json"))
    assert found["quantities"]["params"] == {"before": 77_338, "after": 272_474, "change": 195_136} | {
        "relative": pytest.approx(195_136 / 77_338)
    }
    assert found["input"] == [3, 32, 32]
    assert "accuracy" not in found["quantities"]


def test_compare_with_checkpoints_measures_accuracy(checkpoint: Path) -> None:
    given = ("--weights-a", str(checkpoint), "--weights-b", str(checkpoint), "--runs", "2", "--json")
    found = json.loads(printed("compare", "vgg_mini", "vgg_mini", "--data", "digits", *given))
    assert found["quantities"]["accuracy"]["change"] == 0
    assert found["mcnemar"]["p_value"] == 1
    assert found["input"] == [1, 8, 8]
    assert found["data"].startswith("digits/test")


def test_compare_says_why_there_is_no_accuracy(checkpoint: Path) -> None:
    result = run(
        "compare", "vgg_mini", "resnet_mini", "--data", "digits", "--weights-a", str(checkpoint), "--runs", "2"
    )
    assert result.exit_code == 0
    assert "accuracy" not in result.stdout and "parameters" in result.stdout
    assert "resnet_mini has random weights" in result.stderr


def test_compare_refuses_an_input_that_the_data_do_not_have() -> None:
    assert "1x8x8" in refused("compare", "vgg_mini", "vgg_mini", "--data", "digits", "--input", "3x32x32")


# ----------------------------------------------------------------------------------------------------- groups and prune

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.norm, self.inner = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 12)
        self.outer, self.last = nn.Linear(12, 8), nn.Linear(8, classes)
    def forward(self, x):
        x = self.norm(self.first(x))
        y = self.inner(x).relu()
        return self.last(x + self.outer(y))

def make(classes=3):
    torch.manual_seed(7)
    return Net(classes)

class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)
    def forward(self, x):
        x = self.inner(x)
        assert x.shape[1] == 8
        return self.outer(x)

def stubborn():
    return nn.Sequential(Stubborn())
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    return "net.py:make"


def test_groups_are_listed_with_their_share_of_the_parameters(net: str) -> None:
    text = printed("groups", net, "--input", "6", "--classes", "3")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "first 8 yes no native_layer_norm in norm takes statistics over it" in lines
    assert "inner 12 yes yes" in lines and "last 3 no reaches the output" in lines
    found = json.loads(printed("groups", net, "--input", "6", "--classes", "3", "--json"))
    assert [(g["name"], g["units"], g["prunable"], g["zero_invariant"]) for g in found["groups"]] == [
        *(("first", 8, True, False), ("inner", 12, True, True), ("last", 3, False, False))
    ]
    total = 7 * 8 + 2 * 8 + 9 * 12 + 13 * 8 + 9 * 3
    assert found["share"]["prunable"] == pytest.approx(1 - 3 / total)
    assert found["share"]["zero_invariant"] == pytest.approx((9 * 12 + 12 * 8) / total)
    assert "2 of 3 groups, with 99.0 % of the parameters" in text and "1 of 3 groups, with 65.5 %" in text


def test_groups_keep_what_the_user_names(net: str) -> None:
    rows = json.loads(printed("groups", net, "--input", "6", "--keep", "outer", "--keep", "last", "--json"))["groups"]
    assert [row["prunable"] for row in rows] == [False, False, False]
    assert rows[1]["reason"] == "is kept by your choice of 'outer'"


def test_prune_saves_what_it_says(net: str) -> None:
    given = ("prune", net, "--input", "6", "--classes", "3", "--ratio", "0.5", "-o", "small.cdlib")
    text = printed(*given)
    small = cdlib.load("small.cdlib", models.build(net, 3))
    assert small.inner.out_features == 6 and small.first.out_features == 4
    before, after = (sum(p.numel() for p in m.parameters()) for m in (models.build(net, 3), small))
    assert "10 of 23 units removed, from 2 of 3 groups" in text
    row = next(line.split() for line in text.splitlines() if line.strip().startswith("params"))
    assert row == ["params", str(before), str(after), f"{100 * after / before - 100:+.1f}", "%"]
    assert "wrote small.cdlib" in text and "recorded" not in text
    found = json.loads(printed(*given, "--force", "--json"))
    assert found["groups"]["inner"] == {"units": 12, "removed": 6}
    assert found["before"]["params"] == before and found["after"]["params"] == after
    assert found["after"]["macs"] == cdlib.profile(small, torch.zeros(1, 6)).macs
    assert found["file_bytes"] == Path("small.cdlib").stat().st_size
    assert found["rewritten"] == []


def test_prune_removes_the_lowest_of_the_chosen_groups_rounded(net: str) -> None:
    printed(
        *("prune", net, "--input", "6", "--classes", "3", "--ratio", "0.5", "--saliency", "l1", "--round-to", "4"),
        *("--zero-invariant", "-o", "small.cdlib"),
    )
    model = models.build(net, 3)
    small = cdlib.load("small.cdlib", model)
    score = torch.cat([model.inner.weight, model.inner.bias[:, None]], 1).abs().sum(1)
    kept = score.argsort()[4:].sort().values  # half of 12 are 6, of which 4 leave a multiple of 4
    assert torch.equal(small.inner.weight, model.inner.weight[kept])
    assert torch.equal(small.first.weight, model.first.weight)


def test_prune_starts_from_a_checkpoint_and_from_a_saved_network(net: str) -> None:
    torch.manual_seed(3)
    model = models.build("vgg_mini", 5)
    torch.save(model.state_dict(), "vgg.pt")
    common = ("--input", "3x8x8", "--ratio", "0.25", "--round-to", "2")
    printed("prune", "vgg_mini", *common, "--classes", "5", "--weights", "vgg.pt", "-o", "one.cdlib")
    one = cdlib.load("one.cdlib")
    rows = model.features[0].weight.flatten(1)
    assert all((rows == row).all(1).any() for row in one.features[0].weight.flatten(1))
    printed("prune", "one.cdlib", "--ratio", "0.25", "-o", "two.cdlib")
    printed("prune", "vgg_mini", "--classes", "5", *common[2:], "--weights", "one.cdlib", "-o", "again.cdlib")
    assert cdlib.load("two.cdlib").features[0].out_channels == 9
    assert cdlib.load("again.cdlib").features[0].out_channels == 10


def test_prune_names_the_modules_that_were_rewritten(net: str) -> None:
    given = ("prune", "net.py:stubborn", "--input", "6", "--ratio", "0.5", "-o", "small.cdlib")
    assert (
        "1 module could not follow the new widths and now runs recorded operators, for inputs of 6 only: 0\n"
        in printed(*given)
    )
    assert json.loads(printed(*given, "--force", "--json"))["rewritten"] == ["0"]


def test_prune_says_that_random_weights_are_random(net: str) -> None:
    arguments = ("prune", "vgg_mini", "--input", "3x8x8", "--ratio", "0.5", "-o")
    result = run(*arguments, "a.cdlib")
    assert result.stderr == "note: vgg_mini had random weights: give --weights to prune a trained network\n"
    run(*arguments, "b.cdlib", "--seed", "0")
    run(*arguments, "c.cdlib", "--seed", "1")
    assert Path("a.cdlib").read_bytes() == Path("b.cdlib").read_bytes() != Path("c.cdlib").read_bytes()
    assert run("prune", net, "--input", "6", "--ratio", "0.5", "-o", "d.cdlib").stderr == ""


def test_a_saved_network_is_profiled_and_compared(net: str) -> None:
    printed("prune", "vgg_mini", "--input", "1x8x8", "--ratio", "0.5", "-o", "small.cdlib")
    found = json.loads(printed("profile", "small.cdlib", "--no-layers", "--json"))
    expected = cdlib.profile(cdlib.load("small.cdlib"), torch.zeros(1, 1, 8, 8))
    assert (found["input"], found["classes"], found["totals"]["macs"]) == ([1, 8, 8], 10, expected.macs)
    assert json.loads(printed("profile", "small.cdlib", "--input", "1x16x16", "--json"))["input"] == [1, 16, 16]
    rows = json.loads(printed("compare", "vgg_mini", "small.cdlib", "--runs", "2", "--json"))["quantities"]
    assert rows["macs"]["after"] == expected.macs
    result = run("compare", "small.cdlib", "small.cdlib", "--data", "digits", "--runs", "2", "--json")
    assert result.stderr == "" and json.loads(result.stdout)["quantities"]["accuracy"]["change"] == 0


def test_a_saved_network_of_a_file_goes_into_the_network(net: str) -> None:
    printed("prune", net, "--input", "6", "--ratio", "0.5", "-o", "small.cdlib")
    assert "path/to/net.py:make --weights small.cdlib" in refused("profile", "small.cdlib")
    found = json.loads(printed("profile", net, "--weights", "small.cdlib", "--json"))
    assert found["totals"]["params"] == sum(
        p.numel() for p in cdlib.load("small.cdlib", models.build(net)).parameters()
    )
    rows = json.loads(printed("groups", net, "--weights", "small.cdlib", "--json"))["groups"]
    assert [row["units"] for row in rows] == [4, 6, 10]
    rows = json.loads(printed("compare", net, net, "--weights-b", "small.cdlib", "--runs", "2", "--json"))["quantities"]
    assert rows["params"]["after"] == found["totals"]["params"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ratio", "1"), "ratio=1.0 is no share"),
        (("--ratio", "-0.1"), "ratio=-0.1 is no share"),
        (("--ratio", "nan"), "ratio=nan is no share"),
        (("--ratio", "0.5", "--saliency", "taylor"), "unknown saliency 'taylor'"),
        (("--ratio", "0.5", "--saliency", "bn"), "group 'first' has no batch norm"),
        (("--ratio", "0.5", "--round-to", "0"), "--round-to=0: give an integer of at least 1"),
        (("--ratio", "0.5", "--round-to", "64"), "removes no unit of any group, the largest of which has 12"),
        (("--ratio", "0.01"), "removes no unit"),
        (
            ("--ratio", "0.5", "--seed", "99999999999999999999"),
            "--seed=99999999999999999999: give an integer of at most",
        ),
        (("--ratio", "0.5", "--seed", "-1"), "--seed=-1: give an integer of at least 0"),
        (("--ratio", "0.5", "--seed", "9" * 20), f"--seed={'9' * 20}: give an integer of at most"),
        (("--ratio", "0.5", "--keep", "iner"), "did you mean 'inner'"),
        (("--ratio", "0.5", "--keep", "inner", "--keep", "outer"), "of 3 groups none is prunable"),
        (("--ratio", "0.5", "-o", "net.py"), "net.py exists: give another name, or --force"),
        (("--ratio", "0.5", "-o", "."), "is a folder"),
        (("--ratio", "0.5", "-o", "nowhere/x.cdlib"), "there is no folder nowhere"),
        (("--ratio", "0.5", "--weights", "none.pt"), "none.pt is not a file"),
        (("--ratio", "0.5", "--input", "7"), "(1, 7)"),
    ],
)
def test_prune_refuses_in_one_line_and_writes_nothing(net: str, arguments: tuple[str, ...], message: str) -> None:
    before = sorted(Path.cwd().iterdir()), Path("net.py").read_text()
    defaults = [] if "-o" in arguments else ["-o", "small.cdlib"]
    shape = [] if "--input" in arguments else ["--input", "6"]
    assert message in refused("prune", net, *arguments, *defaults, *shape)
    assert (
        sorted(path for path in Path.cwd().iterdir() if path.name != "__pycache__"),
        Path("net.py").read_text(),
    ) == before


def test_saved_files_that_are_not_right_are_named(net: str) -> None:
    Path("bad.cdlib").write_bytes(b"no network")
    for command in (("profile", "bad.cdlib"), ("groups", "bad.cdlib"), ("compare", "vgg_mini", "bad.cdlib")):
        assert "bad.cdlib cannot be read" in refused(*command)
    assert "none.cdlib is not a file" in refused("prune", "none.cdlib", "--ratio", "0.5", "-o", "x.cdlib")
    cdlib.save(models.build("vgg_mini"), "vgg.cdlib")
    for option in (("--classes", "10"), ("--option", "in_channels=3"), ("--weights", "x.pt")):
        assert f"leave out {option[0]}." in refused("profile", "vgg.cdlib", *option)
    assert "one sample of 3x32x32, 10 classes" in printed("profile", "vgg.cdlib")
    with torch.no_grad():
        pair = nn_pair()
        drop = {"one": [0]}
        cdlib.save(
            cdlib.remove(pair, cdlib.find_groups(pair, (torch.zeros(1, 2), torch.zeros(1, 2))), drop), "pair.cdlib"
        )
    assert "more than one tensor" in refused("profile", "pair.cdlib")


def nn_pair() -> torch.nn.Module:
    class Pair(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(a + b))

    return Pair()


# ----------------------------------------------------------------------------------------------- data, recorded results


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "_config.yml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CDLIB_RESULTS", raising=False)
    return tmp_path


def test_outside_a_checkout_the_commands_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CDLIB_RESULTS", raising=False)
    assert "_config.yml" in refused("results")


def test_data_are_found_and_checked() -> None:
    assert printed("data", "where", "digits").strip().endswith("digits.csv.gz")
    assert json.loads(printed("data", "where", "digits", "--json"))["exists"] is True
    found = json.loads(printed("data", "check", "digits", "--json"))
    assert (found["classes"], found["shape"]) == (10, [1, 8, 8])
    assert "1x8x8" in printed("data", "check", "digits")
    assert printed("data", "fetch", "digits") == printed("data", "where", "digits")


@pytest.mark.parametrize("command", ["where", "fetch", "check"])
def test_an_unknown_data_set_names_the_nearest(command: str) -> None:
    assert "did you mean 'cifar10'" in refused("data", command, "cifra10")


def test_missing_data_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(tmp_path / "none") in refused("data", "check", f"folder:{tmp_path / 'none'}")
    monkeypatch.setenv("CDLIB_DATA", str(tmp_path))
    assert "cifar-10-python.tar.gz" in refused("data", "check", "cifar10")
    (tmp_path / "file").touch()
    monkeypatch.setenv("CDLIB_DATA", str(tmp_path / "file"))
    assert "is not a folder" in refused("data", "fetch", "cifar10")


def test_results_are_listed(book: Path) -> None:
    from cdlib.study.runs import run as record

    assert "no records" in printed("results")
    assert json.loads(printed("results", "--json")) == []
    record("alpha", lambda parameters, seed, folder: {"accuracy": 0.123456789012345}, {"lr": 0.1})
    record("beta", lambda parameters, seed, folder: {"macs": 123_456_789}, {"width": 8})
    rows = json.loads(printed("results", "--experiment", "alpha", "--json"))
    assert [(row["experiment"], row["lr"], row["accuracy"]) for row in rows] == [("alpha", 0.1, 0.123456789012345)]
    text = printed("results")
    assert all(cell in text for cell in ("alpha", "beta", "0.123457", "123456789"))
    assert "nan" not in text.lower()
    assert "did you mean 'alpha'" in refused("results", "--experiment", "alpah")


def test_the_study_is_recorded_and_not_repeated(book: Path) -> None:
    command = ("study", "vgg_mini", "--data", "digits", "--epochs", "1", "--only", "random_draw")
    records = json.loads(printed(*command, "--json"))
    assert [r["parameters"]["method"]["mode"] for r in records] == ["PA", "FA", "MA"]
    for record, counted in zip(records, ("params", "macs", "peak_activation_bytes"), strict=True):
        assert record["metrics"][counted] < 0.6 * record["metrics"][f"dense_{counted}"]
    assert json.loads(printed(*command, "--json")) == records
    assert "3 runs are recorded" in printed(*command)
    assert "did you mean 'vgg_mini'" in refused("study", "vgg_mani", "--data", "digits")
    assert "--seeds=0: give an integer of at least 1" in refused("study", "vgg_mini", "--seeds", "0")
    assert f"--seeds={10**20}: give an integer of at most" in refused("study", "vgg_mini", "--seeds", str(10**20))
    assert "did you mean 'hesso'" in refused("study", "vgg_mini", "--only", "heso", "--data", "digits")


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnt18",), "did you mean 'resnet18'"),
        (("timm:convnext_tinny",), "did you mean 'timm:convnext_tiny'"),
        (("resnet18", "--input", "3x32"), "(1, 3, 32)"),
        (("resnet18", "--input", "1x32x32"), "3 channels"),
        (("resnet18", "--input", "three"), "'three' is not a shape"),
        (("resnet18", "--input", "3x0x32"), "'3x0x32' is not a shape"),
        (("resnet18", "--input", "3x999999999x999999999"), "memory"),
        (("resnet18", "--input", "3x99999999999999999999x3"), "3x99999999999999999999x3 does not fit into memory"),
        (("resnet18", "--input", "9" * 5000), "does not fit into memory"),
        (("resnet18", "--input", "3x٣x3"), "is not a shape"),
        (("vgg_mini", "--classes", "0"), "classes=0"),
        (("convnext_mini", "--option", "stm=2"), "did you mean 'stem'"),
        (("convnext_mini", "--option", "stem=8"), "stem=8"),
        (("convnext_mini", "--option", "stem"), "name=value"),
        (("nowhere/net.py:make",), "nowhere/net.py is not a file"),
    ],
)
def test_profile_refuses_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused("profile", *arguments)


def test_a_network_that_raises_is_reported_in_one_line(tmp_path: Path) -> None:
    source = (
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        raise ValueError('no\\nluck')\n"
    )
    (tmp_path / "net.py").write_text(f"{source}def make():\n    return Net()\n")
    assert "ValueError: no" in refused("profile", f"{tmp_path}/net.py:make")
    assert "ValueError: no" in refused("compare", f"{tmp_path}/net.py:make", "vgg_mini")


def test_standard_output_is_the_report_whatever_a_network_prints(net: str) -> None:
    """What the user's file prints when it is read, built and run goes to standard error."""
    loud = NETWORK.replace("    def forward(self, x):", "    def forward(self, x):\n        print('running')")
    Path("net.py").write_text(
        "print('reading')\n" + loud.replace("    return Net(", "    print('building')\n    return Net(")
    )
    arguments = ("--input", "6", "--classes", "3")
    given = {
        "profile": (net, *arguments),
        "compare": (net, net, *arguments, "--runs", "1"),
        "groups": (net, *arguments),
        "prune": (net, *arguments, "--ratio", "0.5", "-o", "small.cdlib", "--force"),
    }
    for command, rest in given.items():
        result = run(command, *rest, "--json")
        assert result.exit_code == 0 and json.loads(result.stdout), result.stderr
        assert "reading" in result.stderr and "building" in result.stderr and "running" in result.stderr
        text = run(command, *rest).stdout
        assert text and not any(word in text for word in ("reading", "building\n", "running\n"))


def test_networks_without_numbers_and_without_shapes(tmp_path: Path) -> None:
    source = "import torch\nfrom torch import nn\ndef hollow():\n    return nn.Linear(6, 3, device='meta')\n"
    (tmp_path / "net.py").write_text(source + "def lazy():\n    return nn.Sequential(nn.LazyLinear(3))\n")
    hollow, lazy = f"{tmp_path}/net.py:hollow", f"{tmp_path}/net.py:lazy"
    rows = json.loads(printed("compare", hollow, hollow, "--input", "6", "--json"))["quantities"]
    assert rows["macs"]["before"] == rows["macs"]["after"] == 18 and "latency_p50_ms" not in rows
    assert "latency" not in printed("compare", hollow, hollow, "--input", "6")
    for command in (("profile", lazy), ("compare", lazy, lazy), ("groups", lazy)):
        assert "0.weight has no shape yet: run the network once" in refused(*command, "--input", "6")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_corrupt_checkpoint_is_named(checkpoint: Path, content: bytes | None) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500] if content is None else content)
    arguments = ("compare", "vgg_mini", "vgg_mini", "--data", "digits", "--weights-a", str(checkpoint))
    assert str(checkpoint) in refused(*arguments)


def test_a_checkpoint_of_another_network_is_named(checkpoint: Path) -> None:
    assert "does not fit" in refused("compare", "resnet_mini", "vgg_mini", "--weights-a", str(checkpoint))
    missing = str(checkpoint.with_name("none.pt"))
    assert missing in refused("compare", "resnet_mini", "vgg_mini", "--weights-b", missing)


@pytest.mark.parametrize(
    "arguments", [("profile",), ("profile", "vgg_mini", "--inpt", "3x8x8"), ("profil",), ("data",)]
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.output


def test_ctrl_c_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "build", interrupted)
    result = run("profile", "vgg_mini")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(models, "build", broken)
    assert isinstance(run("profile", "vgg_mini").exception, ZeroDivisionError)
