"""Tutorials as pages: scripts with prose (jupytext, py:percent) are executed, and shown with what they print and draw.

``python docs/execute.py NAME`` executes one and says where its page lies.
"""

import hashlib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
FOLDER = ROOT / "build" / "tutorials"
TEMPLATE = """\
{% extends "markdown/index.md.j2" %}
{% block stream %}
```{.text .output}
{{ output.text | trim("\n") }}
```
{% endblock %}
{% block data_svg %}
![Drawn by the lines above]({{ output.metadata.filenames["image/svg+xml"] | path2url }}){.figure}
{% endblock %}
"""
SETUP = """\
%config InlineBackend.figure_formats = ["svg"]
import matplotlib, torch
matplotlib.rcParams.update({"figure.facecolor": "none", "axes.facecolor": "none", "svg.hashsalt": "0"})
matplotlib.rcParams.update({"font.size": 9, "figure.figsize": (6, 3)})
torch.manual_seed(0);
"""


def page(script: Path) -> Path:
    """The page of a script, executed now unless neither it nor the library has changed since it was."""
    page = FOLDER / f"{script.stem}.md"
    if not page.is_file() or not page.read_text().endswith(_stamp(script)):
        run(script)
    return page


def run(script: Path) -> Path:
    """Run a script in a kernel of its own; write its page, figures and notebook. A cell that raises ends it."""
    import jinja2
    import jupytext
    import nbclient
    import nbconvert
    import nbformat
    from traitlets.config import Config

    stamp, notebook = _stamp(script), jupytext.read(script)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    with tempfile.TemporaryDirectory() as sockets:  # kernels that start in one folder would share them
        config = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        where = {"metadata": {"path": ROOT}}
        nbclient.NotebookClient(notebook, config=config, startup_timeout=300, timeout=300, resources=where).execute()
    del notebook.cells[0]
    loader = jinja2.DictLoader({"tutorial.md.j2": TEMPLATE})
    exporter = nbconvert.MarkdownExporter(
        extra_loaders=[loader],
        template_file="tutorial.md.j2",
        preprocessors=["nbconvert.preprocessors.CoalesceStreamsPreprocessor"],
    )
    text, resources = exporter.from_notebook_node(notebook, {"unique_key": script.stem, "output_files_dir": "."})
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob(f"{script.stem}*"):
        old.unlink()
    for name, data in resources["outputs"].items():
        (FOLDER / name).write_bytes(data)
    nbformat.write(notebook, FOLDER / f"{script.stem}.ipynb")
    page = FOLDER / f"{script.stem}.md"
    page.write_text(f"{text}\n[This page as a notebook]({script.stem}.ipynb)\n{stamp}")
    return page


def _stamp(script: Path) -> str:
    sources = [script, Path(__file__), *sorted((ROOT / "efcn_sparse").rglob("*.py"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources))
    return f"\n<!-- made from {digest.hexdigest()} -->\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(run(ROOT / "docs" / "tutorials" / f"{name}.py"))
