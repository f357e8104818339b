"""The command `cdlib`: profile, compare, prune and compress networks, look after data, list recorded results.

The commands themselves are in the modules beside this one: they parse, call the package and have `cdlib.cli.output`
print; nothing is computed there. Reports go to standard output, as text or, with `--json`, as JSON and nothing else;
progress goes to standard error. A `CdlibError` becomes one line on standard error and exit code 2, which is also that
of a wrong usage; Ctrl-C ends with exit code 130; anything else is a bug and keeps its traceback. What is slow to import
is imported inside the commands.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Annotated, Any

from cdlib.errors import CdlibError

try:
    import typer
    from typer.core import TyperGroup
except ModuleNotFoundError:
    sys.exit("error: the command cdlib needs more packages: pip install 'cnn-compression-book[cli,train]'.")

from cdlib.cli import camera, costs, data, deploy, output, pruning, quantization, study


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
            if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise  # no file that the user could make accessible
            raise _end(2, f"error: {error.filename or 'a temporary file'}: {error.strerror}.") from error
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


data_app = typer.Typer(help="Find, fetch or check a data set.", no_args_is_help=True)
app.add_typer(data_app, name="data")

_COMMANDS: dict[typer.Typer, tuple[Callable[..., None], ...]] = {
    app: (
        costs.profile,
        costs.compare,
        pruning.groups,
        pruning.prune,
        quantization.quantize,
        deploy.bench,
        deploy.compress,
        deploy.advise,
        deploy.devices,
        study.results,
        study.repeat,
        study.study,
        camera.camera,
        camera.print_samples,
        camera.simulate,
    ),
    data_app: (data.where, data.fetch, data.check),
}
for group, commands in _COMMANDS.items():
    for command in commands:
        group.command(command.__name__.replace("_", "-"))(output.reserved()(command))


def _end(code: int, line: str) -> typer.Exit:
    """Print a line on standard error and return what ends the command with an exit code."""
    print(" ".join(line.split()), file=sys.stderr)
    return typer.Exit(code)
