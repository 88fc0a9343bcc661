"""The address of the live page, and a browser that looks at it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from evomerge_cli.live_page import page_of

NAME = """
import sys, threading
from evomerge_cli.console import Console
from evomerge_cli.live_page import name_page
name_page(sys.argv[1], "run-1", Console(), opened=True)
for thread in threading.enumerate():
    if thread.name == "open":
        thread.join(30)
"""


@pytest.fixture
def host() -> Iterator[str]:
    """A page that is there at the second look."""
    answers = iter([404])

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(next(answers, 200) if self.path == "/runs/run-1" else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Is not asked for."""

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def name(host: str, **environ: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in {"BROWSER", "DISPLAY", "WAYLAND_DISPLAY"}}
    done = subprocess.run(
        [sys.executable, "-c", NAME, host], env=clean | environ, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stderr


def test_the_browser_opens_when_the_page_is_there(host: str, tmp_path: Path) -> None:
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    browser.chmod(0o755)
    assert name(host, BROWSER=f"{browser} %s") == f"live page: http://{host}/runs/run-1\n"
    assert seen.read_text().strip() == f"http://{host}/runs/run-1"


def test_a_browser_that_cannot_open_is_told(host: str) -> None:
    if sys.platform.startswith("linux"):
        assert "there is no browser here" in name(host)
    assert "the browser did not open" in name(host, BROWSER="/bin/false %s")


def test_a_run_id_is_no_path() -> None:
    assert page_of("127.0.0.1:80", "a/../b?c") == "http://127.0.0.1:80/runs/a%2F..%2Fb%3Fc"
