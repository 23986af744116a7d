"""Every public name is on a page of the reference, and every page in the menu of the site."""

import importlib
import re
import types

import pytest

MODULES = ["", ".analysis", ".checkpoint", ".convert", ".distributed", ".init", ".landscape", ".planning", ".training"]
ENTRY = re.compile(r"^::: (\S+)\n(?:    options:\n      heading: (\S+)\n)?", re.MULTILINE)


@pytest.fixture(scope="module")
def entries(project):
    pages = (project / "docs" / "reference").glob("*.md")
    return {heading or target: target for page in pages for target, heading in ENTRY.findall(page.read_text())}


def _public(module):
    """What a module defines, or a package exports."""
    is_package = hasattr(module, "__path__")
    for name in getattr(module, "__all__", None) or dir(module):
        owner = getattr(getattr(module, name), "__module__", None)  # None: a constant or a module
        exported = is_package and owner is None and not isinstance(getattr(module, name), types.ModuleType)
        if name[0] != "_" and (exported or f"{owner}.".startswith(f"{module.__name__}.")):
            yield name


def _find(path):
    """What a path names; a function hides the submodule of the same name, but not what lies in that."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_there(entries, name):
    module = importlib.import_module(f"efcn_sparse{name}")
    names = set(_public(module))
    if name == ".landscape":
        names -= {"locality"}  # it is efcn_sparse.locality
    assert len(names) > 1
    assert {f"{module.__name__}.{name}" for name in names} <= entries.keys()


def test_every_entry_is_what_its_heading_says(entries):
    for heading, target in entries.items():
        assert _find(heading) is _find(target)


def test_every_page_is_in_the_menu(project):
    menu = (project / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = {path.relative_to(project / "docs").as_posix() for path in (project / "docs").rglob("*.md")}
    pages |= {f"tutorials/{path.stem}.md" for path in (project / "docs" / "tutorials").glob("*.py")}
    assert {page for page in pages if not re.search(rf" {re.escape(page)}$", menu, re.MULTILINE)} == set()
