"""Every word of ours that a user meets is linked to its definition in DESIGN.md, and such links lead to words."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_THE_INSIDE = {"w", "unit", "kernel-coordinate", "tie"}


def _slug(words):
    return re.sub(r"\W+", "-", words.split(",")[0].replace("δ", "delta")).strip("-").lower()


def test_every_word_is_linked_to_its_definition():
    section = re.search(r"^## 2\. Words\n(.*?)^## 3", (ROOT / "DESIGN.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    words = {_slug(words) for words in re.findall(r"^\| ([^|]+) \| ", section, re.MULTILINE)[1:]}
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs" / "tutorials").glob("*.py"), ROOT / "README.md"]
    linked = {anchor for page in pages for anchor in re.findall(r"DESIGN\.md#([^)\s]+)\)", page.read_text())}
    assert words - OF_THE_INSIDE == {anchor for anchor in linked if not anchor[0].isdigit()}
