"""``python -m cdlib.cli`` is the command `cdlib`."""

from cdlib.cli.app import main

main()
