"""pyproject.toml, requirements.lock and environment.yml describe one environment."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import cdlib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LEFT_OUT = {"executorch"}
"""Extras that nobody gets unasked."""
WANTED = sorted({*PROJECT["dependencies"], *(name for extra in EXTRAS.keys() - LEFT_OUT for name in EXTRAS[extra])})


def locked() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("wanted", [Requirement(text) for text in WANTED], ids=str)
def test_the_lock_has_every_dependency_at_a_version_that_fits(wanted: Requirement) -> None:
    name = canonicalize_name(wanted.name)
    versions = [pin.version for line in locked() if canonicalize_name(line.name) == name for pin in line.specifier]
    assert versions, f"{name} is not in requirements.lock: make lock"
    assert all(wanted.specifier.contains(version) for version in versions)


def test_the_lock_is_made_of_all_other_extras() -> None:
    [given] = re.findall(r"^LOCKED = (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(given.split()) == sorted(EXTRAS.keys() - LEFT_OUT)
    assert not {line.name for line in locked()} & LEFT_OUT


def test_the_lock_has_exact_versions_and_no_addresses() -> None:
    for line in locked():
        [pin] = line.specifier
        assert pin.operator == "==" and "*" not in pin.version, str(line)
        assert line.url is None
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.findall(r".*(?:://|--index|--find-links|--extra).*", text)


def test_conda_users_get_the_same_python_and_the_same_lock() -> None:
    [python, pip, section] = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert SpecifierSet(python.removeprefix("python ")) == SpecifierSet(PROJECT["requires-python"])
    assert (pip, section) == ("pip", {"pip": ["--requirement requirements.lock", "--editable ."]})


def test_what_the_package_needs_is_little() -> None:
    assert {Requirement(text).name for text in PROJECT["dependencies"]} == {"torch", "numpy", "pandas", "safetensors"}


def test_one_version_everywhere() -> None:
    assert PROJECT["version"] == cdlib.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == cdlib.__version__
