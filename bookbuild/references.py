"""A Sphinx extension: a name of the library is found under the face that documents it, wherever it is defined.

Annotations name a class by the module that defines it (`cdlib.grouping.groups.Groups`) and people by where they import
it from (`cdlib.find_groups`); the pages document faces (`cdlib.grouping.Groups`).
"""

from __future__ import annotations

import importlib
from typing import Any


def setup(app: Any) -> dict[str, bool]:
    """Register the extension."""
    app.connect("missing-reference", _under_its_face)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _under_its_face(app: Any, env: Any, node: Any, shown: Any) -> Any:
    top, *parts = node.get("reftarget", "").split(".")
    if node.get("refdomain") != "py" or top != "cdlib":
        return None
    library, python = importlib.import_module(top), env.get_domain("py")
    if parts and parts[0] in library._FROM:  # cdlib.remove, cdlib.Groups.check
        parts = [library._FROM[parts[0]].removeprefix("cdlib."), *parts]
    for inner in range(2, len(parts)):
        target = ".".join([top, parts[0], *parts[inner:]])
        found = python.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, shown)
        if found is not None:
            return found
    return None
