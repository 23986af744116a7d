"""The tutorials run as they stand; `make docs` then shows what they printed and drew here."""

import pytest

from docs import execute


@pytest.mark.parametrize("script", execute.SCRIPTS, ids=[script.stem for script in execute.SCRIPTS])
def test_tutorial_runs(script):
    page = execute.run(script)
    assert "```{.text .output}" in page.read_text()
