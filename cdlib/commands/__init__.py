"""The commands of `cdlib`, a module for each family; `cdlib.cli` puts them together."""
