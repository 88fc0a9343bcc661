"""The result folder of a run, from its event log alone: no service and no broker is needed."""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from evomerge_common.adapters.codec import to_json_line
from evomerge_common.domain.suite import Suite
from evomerge_common.ports import Recorded
from evomerge_common.runtime.files import write_atomically
from evomerge_report.card import model_card, notes_of
from evomerge_report.comparison import comparison_svg
from evomerge_report.folds import folds_of
from evomerge_report.formats import FILTERS
from evomerge_report.history import History, history_of, short_name
from evomerge_report.lineage import lineage_svg
from evomerge_report.page import SCRIPTS, STYLES, asset
from evomerge_report.projection import Projection
from evomerge_report.queries import Queries
from evomerge_report.result import result_of
from evomerge_report.timeline import timeline_svg
from evomerge_report.trace import summary, trace_of
from evomerge_report.views.candidate import candidate_view, items_view
from evomerge_report.views.run import run_view

__all__ = ["environment", "model_card", "prepare_report", "report_page", "write_report"]

_HERE = Path(__file__).parent
BEST = 20
"""Candidates of the leaderboard that a report has pages of."""


def write_report(
    events: Iterable[Recorded],
    suite: Suite,
    out_dir: Path,
    *,
    folds: Sequence[tuple[Sequence[Recorded], Suite]] = (),
) -> dict[str, Any]:
    """Writes report/, result.json and events.jsonl.

    The report is index.html (benchmark_report.html is the same), four PNG charts, lineage.svg and timeline.svg.
    Each file is replaced as a whole, so a report may be written again and again, also of a run under way. Draws with
    matplotlib in this process: a service calls it in a child process.

    Args:
        events: of the run.
        suite: that it was scored on.
        out_dir: where all is written.
        folds: log and suite of a search on each fold, where there were any.

    Returns:
        What result.json holds; see `domain.result.result_of`.

    Raises:
        InvalidInput: no events, or events of several runs.

    """
    from evomerge_report.charts import draw_all

    recorded = list(events)
    history = history_of(recorded)
    trace = trace_of(recorded)
    result = {**result_of(history, suite), "trace": summary(trace)}
    result["folds"] = folds_of(folds, int(result["seed"]))
    folder = out_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    draw_all(history, result, folder)
    write_atomically(folder / "lineage.svg", lineage_svg(history))
    write_atomically(folder / "timeline.svg", timeline_svg(trace))
    page = report_page(history, result, page_data(recorded, suite))
    write_atomically(folder / "index.html", page)
    write_atomically(folder / "benchmark_report.html", page)
    write_atomically(
        out_dir / "events.jsonl", "".join(to_json_line(item.event, item.sequence) + "\n" for item in recorded)
    )
    write_atomically(out_dir / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def prepare_report(events: Iterable[Recorded], suite: Suite) -> None:
    """Does what takes longest of `write_report` in this process, as far as the log goes: imports, pictures of the
    search, bootstrap samples. For whoever waits for the last scores anyway.
    """
    from evomerge_report.charts import draw_all

    history = history_of(events)
    with tempfile.TemporaryDirectory() as folder:
        draw_all(history, result_of(history, suite), Path(folder))


def page_data(events: Iterable[Recorded], suite: Suite) -> dict[str, Any]:
    """Gathers what the page's scripts show: `run` (its view), `candidates` (digest → view; the champion, the sources
    and the best), `items` (texts of the suite's).
    """
    projection = Projection()
    projection.apply_all(events)
    queries = Queries(projection.database)
    (run,) = queries.runs()
    wanted = [one.digest for one in (*queries.sources(run.run_id), *queries.leaderboard(run.run_id, limit=BEST))]
    if queries.candidate(run.run_id, run.champion) is not None:
        wanted = [run.champion, *wanted]
    data = {
        "run": run_view(queries, run.run_id),
        "candidates": {digest: candidate_view(queries, run.run_id, digest) for digest in dict.fromkeys(wanted)},
        "items": items_view(suite, ended=run.has_ended),
    }
    projection.close()
    return data


def report_page(history: History, result: dict[str, Any], data: dict[str, Any] | None = None) -> str:
    """Writes the page as HTML; only pictures lie beside it.

    Args:
        history: of the run.
        result: see `result_of`.
        data: see `page_data`; without it the page has no scripts, and shows pictures where they would draw.

    """
    champion = result["champion"]
    rows = [("champion", champion)] if champion else []
    rows += [(short_name(source["reference"]), source) for source in result["sources"]]
    script = "\n".join(asset(name).read_text("utf-8") for name in SCRIPTS)
    return (
        environment()
        .get_template("report.html")
        .render(
            r=result,
            rows=rows,
            notes=notes_of(result),
            recipe=json.dumps(champion["recipe"], indent=2, ensure_ascii=False) if champion else "",
            style=Markup("\n".join(asset(name).read_text("utf-8") for name in STYLES)),  # noqa: S704 - our own files
            script=Markup(script),  # noqa: S704 - our own files, nothing of a user in them
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            data=None if data is None else Markup(embedded(data)),  # noqa: S704 - escaped for where it stands
            bars=Markup(comparison_svg(result)),  # noqa: S704 - escaped there
        )
    )


def embedded(data: Any) -> str:
    """Writes JSON for a script element: no character in it can end the element or begin another."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def environment(*folders: Path) -> jinja2.Environment:
    """Opens templates with everything escaped: the report's own, and those of further folders."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, _HERE / "templates"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    made.filters.update(FILTERS)
    return made
