"""The site's navigation leads to every page of results, and to no page that is gone."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_pages_of_results_are_those_of_the_navigation():
    listed = re.findall(r"benchmarks/results/(\S+\.md)", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(page.name for page in (ROOT / "benchmarks" / "results").glob("*.md"))
