"""The site as a reader with a phone sees it: built strictly, opened page by page in headless Chromium."""

import functools
import http.server
import json
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


class _Server(http.server.SimpleHTTPRequestHandler):
    """The site's files, and a place to report to."""

    reports: queue.Queue

    def do_POST(self):
        self.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        """Keep quiet."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def seen(site, tmp_path_factory):
    """What ``probe.html`` found on each page, and where a search led."""
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "404.html")
    probe = (ROOT / "tests" / "docs" / "probe.html").read_text()
    (site / "probe.html").write_text(probe.replace("PAGES", json.dumps(pages)))
    _Server.reports = queue.Queue()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Server, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    profile = tmp_path_factory.mktemp("profile")
    browser = subprocess.Popen(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}",
         "--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/probe.html"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        report = _Server.reports.get(timeout=600)
    finally:
        browser.kill()
        browser.wait()
        server.shutdown()
        server.server_close()
    assert set(report["pages"]) == set(pages)
    return report


def test_every_page_renders(seen):
    for name, page in seen["pages"].items():
        assert page["title"], name
        assert page["words"] > 20, name
        assert page["broken"] == [], name


def test_no_page_is_wider_than_a_phone(seen):
    assert {name: page["width"] for name, page in seen["pages"].items() if page["width"] > 390} == {}


def test_text_stands_out_in_light_and_dark(seen):
    assert {name: page["faint"] for name, page in seen["pages"].items() if page["faint"]} == {}


def test_no_link_is_dead(seen, site):
    ids = {name: set(page["ids"]) for name, page in seen["pages"].items()}
    dead = set()
    for name, page in seen["pages"].items():
        for link in page["links"]:
            parts = urlsplit(link)
            target = unquote(parts.path).lstrip("/")
            target += "index.html" if target == "" or target.endswith("/") else ""
            there = (site / target).is_file()
            if not there or (parts.fragment and target in ids and unquote(parts.fragment) not in ids[target]):
                dead.add((name, link))
    assert dead == set()


def test_the_search_finds_a_layer(seen):
    assert any(hit.endswith("#efcn_sparse.SparseLinear") for hit in seen["hits"][:10]), seen["hits"]
