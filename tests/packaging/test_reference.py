"""Every public name is on a page of the reference, and every entry there is a public name."""

import importlib
import re
import types

import pytest

import efcn_sparse as es

MODULES = ["init", "convert", "checkpoint", "distributed", "planning", "landscape", "training"]
ENTRY = re.compile(r"^::: (\S+)\n(?:    options:\n      heading: (\S+)\n)?", re.MULTILINE)


def _find(path):
    """What a dotted path names; the submodule of a package where a function hides it."""
    module, _, name = path.rpartition(".")
    while module:
        try:
            found = importlib.import_module(module)
        except ImportError:
            module, _, left = module.rpartition(".")
            name = f"{left}.{name}"
            continue
        for part in name.split("."):
            found = getattr(found, part)
        return found
    raise ImportError(path)


@pytest.fixture(scope="module")
def entries(project):
    pages = (project / "docs" / "reference").glob("*.md")
    return {heading or target: target for page in pages for target, heading in ENTRY.findall(page.read_text())}


def _public(module):
    """What a module defines or exports, without modules and what it imports for itself."""
    names = getattr(module, "__all__", None) or [name for name in dir(module) if not name.startswith("_")]
    for name in names:
        what = getattr(module, name)
        if not isinstance(what, types.ModuleType):
            yield name, what


def _is_ours(module, name, what):
    if getattr(module, "__all__", None) is not None or not hasattr(what, "__module__"):
        return True
    is_package = hasattr(module, "__path__")
    return what.__module__.startswith(module.__name__) if is_package else what.__module__ == module.__name__


@pytest.mark.parametrize("name", ["", *MODULES])
def test_every_public_name_is_there(entries, name):
    module = importlib.import_module(f"efcn_sparse.{name}".rstrip("."))
    missing = [n for n, what in _public(module) if _is_ours(module, n, what) and f"{module.__name__}.{n}" not in entries]
    if name == "landscape":
        missing = [n for n in missing if n not in es.__all__]  # locality is under es
    assert not missing


def test_every_entry_is_what_its_heading_says(entries):
    for heading, target in entries.items():
        assert _find(heading) is _find(target), heading
