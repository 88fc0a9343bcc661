"""The files that the page is made of in a browser: of the live page, and of a report that carries them with it.

No build step: plain scripts, which load in the order of `SCRIPTS`. Charts are drawn by uPlot, whose script comes with
the distribution uplot-python; its Python package is never imported (it would import IPython).
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from evomerge_common.errors import NotFound

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("uPlot.iife.js", "dom.js", "format.js", "charts.js", "table.js", "page.js", "runs.js", "run.js",
           "lineage.js", "compare.js", "candidate.js", "try_it.js", "report.js")  # fmt: skip
"""Each relies on those before it."""
STYLES = ("uPlot.min.css", "style.css")
IMAGES = ("icon.svg",)
_UPLOT = ("uPlot.iife.js", "uPlot.min.css")


@cache
def asset(name: str) -> Path:
    """Returns the file of a script, style sheet or image.

    Raises:
        NotFound: the page has no such file, or uPlot is not installed.

    """
    if name in _UPLOT:
        package = find_spec("uplot")
        folders = [Path(one) for one in (package.submodule_search_locations or ())] if package else []
        found = next((file for one in folders if (file := one / "static" / name).is_file()), None)
        if found is None:
            raise NotFound(f"{name} is not here: `pip install uplot-python` brings it")
        return found
    if name in SCRIPTS:
        return STATIC / "page" / name
    if name in (*STYLES, *IMAGES):
        return STATIC / name
    raise NotFound(f"the page has no file {name!r}")
