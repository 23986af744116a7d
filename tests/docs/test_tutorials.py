"""The tutorials run as they stand; `make docs` then shows what they printed and drew here."""

import pytest
from docs import tutorials


@pytest.mark.parametrize("script", tutorials.SCRIPTS, ids=[script.stem for script in tutorials.SCRIPTS])
def test_tutorial_runs(script):
    page = tutorials.execute(script)
    assert "```{.text .output}" in page.read_text()
