"""What mkdocs cannot do alone: pages and sections from outside docs/, links that leave docs/, our docstrings."""

import json
import posixpath
import re
import sys
from pathlib import Path

import execute
import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent

# Files outside docs/ that are pages of the site: where they lie in the repository, and in the site.
PAGES = {
    "DESIGN.md": "design.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "README.md",
    "benchmarks/README.md": "benchmarks/README.md",
    **{f"benchmarks/results/{p.name}": f"benchmarks/results/{p.name}" for p in ROOT.glob("benchmarks/results/*.md")},
    **{f"docs/tutorials/{p.name}": f"tutorials/{p.stem}.md" for p in execute.SCRIPTS},
}
LINK = re.compile(r"(?<!\\)(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
RESULTS = ROOT / "benchmarks" / "results"
WORD = re.compile(r"^\| ((?!word |---|`|folder )[^|\n]+) \|", re.MULTILINE)  # of section 2 of DESIGN.md
SECTION = re.compile(r"<!-- section of ([\w/.]+): (.+?) -->\n")


def on_files(files, config):
    """Add the pages that lie outside docs/."""
    for source, page in PAGES.items():
        if source.endswith(".py"):
            page = execute.page(ROOT / source)
            for made in page.parent.glob(f"{page.stem}*"):
                files.append(File.generated(config, f"tutorials/{made.name}", abs_src_path=str(made)))
        elif source != "README.md":
            text = (ROOT / source).read_text()
            files.append(File.generated(config, page, content=_concepts(text) if source == "DESIGN.md" else text))
    sys.path.insert(0, str(ROOT))
    from benchmarks.picture import drawable, picture

    for path in ROOT.glob("benchmarks/results/*.json"):
        if drawable(results := json.loads(path.read_text())):
            files.append(File.generated(config, f"figures/{path.stem}.svg", content=picture(results)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put sections of other files where they are asked for, and make links right for the site."""
    here = page.file.src_uri
    page.meta["search"] = {"boost": 4 if here.startswith("reference/") else 0.2 if here == "changelog.md" else 1}
    source = {site: source for source, site in PAGES.items() if source != "README.md"}.get(here, f"docs/{here}")
    markdown = _links(markdown, source, here)
    drawn = sorted(
        file.name for file in files if file.src_uri.startswith("figures/") and (RESULTS / f"{file.name}.json").is_file()
    )
    pictures = "\n\n".join(f"![Times of {stem}](../figures/{stem}.svg)" for stem in drawn)
    markdown = markdown.replace("<!-- pictures of results -->", pictures)
    if here == "design.md":
        markdown = WORD.sub(lambda found: f'| <a id="{_slug(found[1])}"></a>{found[1]} |', markdown)
    return SECTION.sub(lambda found: _links(_section(found[1], found[2]), found[1], here) + "\n", markdown)


class Docstrings(griffe.Extension):
    """Write docstrings as griffe reads them: no Sphinx roles, one name an item, "Examples", laws in bold."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            text = re.sub(r":(?:class|func|meth|mod|attr|obj):`~?", "`", obj.docstring.value)
            text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
            text = re.sub(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", _one_by_one, text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^( *)(Laws?|Shapes?|Source):", r"\1**\2**:", text, flags=re.MULTILINE)


def _one_by_one(item: re.Match) -> str:
    """Several arguments that share a description, each with it."""
    return "\n".join(f"{item[1]}{name}: {item[3]}" for name in item[2].split(", "))


def _concepts(design: str) -> str:
    """What a user needs of DESIGN.md: what it is for, the words and the maths."""
    return "# Concepts\n\n## 1. " + design.partition("\n## 1. ")[2].partition("\n## 4. ")[0]


def _slug(words: str) -> str:
    """The anchor of a row of words: the first of them."""
    return re.sub(r"\W+", "-", words.split(",")[0].replace("δ", "delta")).strip("-").lower()


def _section(source: str, title: str) -> str:
    """What stands under a heading of a file, or before its first heading, up to the next one."""
    parts = re.split(r"^## (.+)\n", (ROOT / source).read_text(), flags=re.MULTILINE)
    sections = dict(zip(["Start", *parts[1::2]], [parts[0].split("\n", 1)[1], *parts[2::2]], strict=True))
    return sections[title].strip("\n")


def _links(markdown: str, source: str, here: str) -> str:
    """Turn links relative to ``source`` in the repository into links relative to ``here`` in the site."""

    def link(found: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[3]))
        page = PAGES.get(target) or (target[5:] if target.startswith("docs/") else None)
        if page is None:  # not on the site
            return found[2]
        return f"{found[1]}[{found[2]}]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{found[4] or ''})"

    fenced = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in fenced)
