"""The command `cdlib`: profile and compare networks, run chapters, look after data, list recorded results.

It parses, calls the package and has `cdlib.console` print; nothing is computed here. Reports go to standard output, as
text or, with `--json`, as JSON and nothing else; progress goes to standard error. A `CdlibError` becomes one line on
standard error and exit code 2, which is also that of a wrong usage; Ctrl-C ends with exit code 130; anything else is a
bug and keeps its traceback. What is slow to import is imported inside the commands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cdlib.errors import CdlibError, unknown

try:
    import typer
    from typer.core import TyperGroup
except ModuleNotFoundError:
    sys.exit("error: the command cdlib needs more packages: pip install 'cnn-compression-book[cli,train]'.")

if TYPE_CHECKING:
    from torch import Tensor, nn

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Settings = list[str] | None
DataName = Annotated[str, typer.Argument(help="digits, cifar10, cifar100 or folder:PATH.")]

_MODEL = "A name of the book, of torchvision or timm, timm:NAME, or path/to/file.py:function."
_INPUT = "3x32x32"


class _Commands(TyperGroup):
    """All commands: whatever a user can cause ends in one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CdlibError as error:
            raise _end(2, f"error: {error}") from error
        except ModuleNotFoundError as error:
            if (error.name or "cdlib").partition(".")[0] == "cdlib":
                raise
            raise _end(2, f"error: no package {error.name}: pip install 'cnn-compression-book[train,book]'.") from error
        except OSError as error:
            if error.filename is None:  # no file that the user could make accessible
                raise
            raise _end(2, f"error: {error.filename}: {error.strerror}.") from error
        except KeyboardInterrupt as error:
            raise _end(130, "interrupted") from error


app = typer.Typer(
    cls=_Commands,
    help="What a CNN costs, how to make it cheaper, and what that does to it.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
chapters_app = typer.Typer(help="List or run the chapters of the book.", no_args_is_help=True)
data_app = typer.Typer(help="Find, fetch or check a data set.", no_args_is_help=True)


def main() -> None:
    """Run the command with the arguments of this process, and end the process."""
    app(prog_name="cdlib")


def _version(wanted: bool) -> None:
    if wanted:
        from cdlib import __version__

        print(f"cdlib {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("profile")
def _profile(
    model: Annotated[str, typer.Argument(help=_MODEL)],
    shape: Annotated[str, typer.Option("--input", help="Shape of one sample.")] = _INPUT,
    classes: Annotated[int, typer.Option(help="Width of the classifier.")] = 10,
    layers: Annotated[bool, typer.Option(help="Show a row per layer.")] = True,
    option: Annotated[Settings, typer.Option(metavar="NAME=VALUE", help="An option of the network.")] = None,
    as_json: Json = False,
) -> None:
    """Count parameters, MACs and memory, layer by layer."""
    from cdlib import arguments, console, profile

    example = arguments.sample(shape)
    found = profile(_build(model, classes, example, option), example)
    if as_json:
        rows = [{"layer": name, **row} for name, row in found.layers.to_dict("index").items()]
        facts = {"model": model, "input": list(example.shape[1:]), "classes": classes, "totals": found.totals()}
        console.print_json({**facts, "layers": rows} if layers else facts)
        return
    if layers:
        console.print_layers(found)
    print(f"{model}, one sample of {console.times(example.shape[1:])}, {classes} classes")
    console.print_totals(found)


@app.command("compare")
def _compare(
    before: Annotated[str, typer.Argument(help=_MODEL)],
    after: Annotated[str, typer.Argument(help="The same for the other network.")],
    data: Annotated[str | None, typer.Option(help="Data set on whose test split they are measured.")] = None,
    shape: Annotated[str | None, typer.Option("--input", help=f"Shape of a sample without --data ({_INPUT}).")] = None,
    classes: Annotated[int | None, typer.Option(help="Width of the classifiers (the data set's, or 10).")] = None,
    weights_a: Annotated[Path | None, typer.Option(help="Checkpoint of the first network.")] = None,
    weights_b: Annotated[Path | None, typer.Option(help="Checkpoint of the second network.")] = None,
    option_a: Annotated[Settings, typer.Option(metavar="NAME=VALUE", help="An option of the first network.")] = None,
    option_b: Annotated[Settings, typer.Option(metavar="NAME=VALUE", help="An option of the second network.")] = None,
    runs: Annotated[int, typer.Option(help="Timed forward passes of each network.")] = 50,
    as_json: Json = False,
) -> None:
    """Measure two networks alike and show what changes.

    That is size, MACs, latency, memory and, with --data, accuracy. A network without a checkpoint has random weights,
    and then no accuracy is measured, unless it comes from path/to/file.py:function, which may load its own.
    """
    import torch

    from cdlib import arguments, console, report, weights
    from cdlib import data as datasets

    split, example = None, None
    if data is not None:
        dataset = datasets.load(data)
        split, example = dataset.test, dataset.test.input()
        classes = classes or len(dataset.classes)
        if shape is not None and arguments.sample(shape).shape != example.shape:
            raise CdlibError(
                f"--input {shape} is not the shape of {data}, {console.times(dataset.shape)}: leave it out."
            )
    example = arguments.sample(shape or _INPUT) if example is None else example
    networks: dict[str, nn.Module] = {}
    for name, checkpoint, option in ((before, weights_a, option_a), (after, weights_b, option_b)):
        torch.manual_seed(0)
        network = _build(name, classes or 10, example, option)
        if checkpoint is not None:
            weights.load(network, checkpoint)
        elif split is not None and ".py:" not in name:
            print(
                f"note: no accuracy, since {name} has random weights: give --weights-a and --weights-b", file=sys.stderr
            )
            split = None
        label = " ".join([name, *(option or []), *([checkpoint.name] if checkpoint else [])])
        networks[label if label not in networks else f"{label} (again)"] = network
    measured = report.measure(networks, split, example_input=example, runs=runs, progress=sys.stderr.isatty())
    comparison = report.compare(*measured.values())
    if not as_json:
        print(comparison)
        return
    frame = comparison.frame.astype(object).where(comparison.frame.notna(), None)
    first, second = measured.values()
    facts: dict[str, Any] = {
        "before": first.name,
        "after": second.name,
        "input": list(first.input_shape[1:]),
        "data": first.data,
    }
    facts |= {"machine": first.machine, "runs": runs, "quantities": frame.to_dict("index")}
    console.print_json({**facts, "mcnemar": None if comparison.paired is None else vars(comparison.paired)})


@chapters_app.command("list")
def _chapters_list(as_json: Json = False) -> None:
    """List the chapters with their parameters."""
    from cdlib import chapters, console

    found, profiles = chapters.find(), chapters.profiles()
    if as_json:
        keys = ("number", "name", "title", "parameters")
        rows = [{key: getattr(chapter, key) for key in keys} for chapter in found]
        console.print_json({"profiles": profiles, "chapters": rows})
        return
    table = [(c.number, c.title, ", ".join(f"{key}={value}" for key, value in c.parameters.items())) for c in found]
    console.print_table(["", "chapter", "parameters (quick)"], table)
    print(f"profiles: {', '.join(profiles)}")


@chapters_app.command("run")
def _chapters_run(
    numbers: Annotated[list[str] | None, typer.Argument(help="Numbers of chapters; all by default.")] = None,
    profile: Annotated[str, typer.Option(help="The values to run them with.")] = "quick",
    parameter: Annotated[
        Settings, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A value of your own.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Chapters at a time.")] = 2,
    as_json: Json = False,
) -> None:
    """Run chapters; what has not changed since it last ran is kept. Exit code 1 if one fails."""
    from cdlib import arguments, chapters, console

    found = chapters.run(numbers, profile=profile, parameters=arguments.pairs("-p", parameter), jobs=jobs)
    if as_json:
        keys = ("path", "seconds", "cached", "parameters", "error")
        rows = [{"number": item.chapter.number, **{key: getattr(item, key) for key in keys}} for item in found]
        console.print_json({"profile": profile, "chapters": rows})
    else:
        table = [(item.chapter.number, _verdict(item), f"{item.seconds:.1f} s", item.path) for item in found]
        console.print_table(["", "chapter", "time", "notebook"], table)
    if any(item.error for item in found):
        raise typer.Exit(1)


@data_app.command("where")
def _data_where(name: DataName, as_json: Json = False) -> None:
    """Say where a data set is read from, or where it will be put."""
    from cdlib import console, data

    place = data.where(name)
    console.print_json({"name": name, "where": place, "exists": place.exists()}) if as_json else print(place)


@data_app.command("fetch")
def _data_fetch(name: DataName, as_json: Json = False) -> None:
    """Download what is missing, and make a data set ready for use without a network."""
    from cdlib import console, data

    place = data.fetch(name)
    console.print_json({"name": name, "where": place}) if as_json else print(place)


@data_app.command("check")
def _data_check(name: DataName, as_json: Json = False) -> None:
    """Read a whole data set without the network and say what it holds."""
    from cdlib import console, data

    found = data.check(name)
    if as_json:
        console.print_json(found)
        return
    for key, value in found.items():
        print(f"{key:12} {console.times(value) if key == 'shape' else value}")


@app.command("results")
def _results(
    experiment: Annotated[str | None, typer.Option(help="Only this experiment.")] = None, as_json: Json = False
) -> None:
    """List the recorded runs of the study."""
    from cdlib import console
    from cdlib.study import store

    frame = store.load()
    if experiment is not None:
        if experiment not in (known := set(frame["experiment"])):
            raise unknown("experiment", experiment, known)
        frame = store.load(experiment=experiment)
    if as_json:
        console.print_json(json.loads(frame.reset_index().to_json(orient="records", double_precision=15)))
    elif frame.empty:
        print(f"no records in {store.folder()}")
    else:
        console.print_frame(frame.reset_index().dropna(axis="columns", how="all"))


app.add_typer(chapters_app, name="chapters")
app.add_typer(data_app, name="data")


def _build(name: str, classes: int, example: Tensor, settings: Settings) -> nn.Module:
    """Build a network; one that lets its input channels be chosen gets those of the example."""
    from cdlib import arguments, models

    options = {key: arguments.literal(value) for key, value in arguments.pairs("--option", settings).items()}
    if "in_channels" in models.options(name):
        options.setdefault("in_channels", example.shape[1])
    return models.build(name, classes, **options)


def _verdict(result: Any) -> str:
    return f"failed: {result.error}" if result.error else "unchanged" if result.cached else "done"


def _end(code: int, line: str) -> typer.Exit:
    """Print a line on standard error and return what ends the command with an exit code."""
    print(" ".join(line.split()), file=sys.stderr)
    return typer.Exit(code)


if __name__ == "__main__":
    main()
