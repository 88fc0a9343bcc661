"""A run's live page: its address, and a browser to look at it."""

from __future__ import annotations

import http.client
import os
import sys
import threading
import time
import webbrowser
from urllib.parse import quote

from evomerge_cli.console import Console

READY_SECONDS = 60.0


def page_of(host: str, run_id: str) -> str:
    """Returns the address of a run's page; `host` is that of the reporter, with its port."""
    return f"http://{host}/runs/{quote(run_id, safe='')}"


def name_page(host: str, run_id: str, console: Console, *, opened: bool) -> None:
    """Tells where the page is, and opens it as soon as it is there; says so when that cannot be."""
    url = page_of(host, run_id)
    console.say(f"live page: {url}")
    if not opened:
        return
    if not has_browser():
        console.say("note: there is no browser here to open it in: copy the address, or name a browser in BROWSER")
        return
    threading.Thread(target=_open_when_ready, args=(host, url, console), name="open", daemon=True).start()


def has_browser() -> bool:
    """Tells whether a browser has a window to go to; one that would take this terminal does not count."""
    if sys.platform.startswith("linux") and not any(map(os.environ.get, ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def _open_when_ready(host: str, url: str, console: Console) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _answers(host, url) and time.monotonic() < deadline:
        time.sleep(0.2)
    if not webbrowser.open(url):
        console.say(f"note: the browser did not open; the page is at {url}")


def _answers(host: str, url: str) -> bool:
    """Tells whether the page is there; it comes a moment after the run has begun."""
    connection = http.client.HTTPConnection(host, timeout=5.0)
    try:
        connection.request("GET", url.removeprefix(f"http://{host}"))
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
