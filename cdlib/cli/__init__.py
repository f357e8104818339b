"""The command `cdlib`."""

from cdlib.cli.app import main

__all__ = ["main"]
