"""The result folder of a run, from its event log alone: no service and no broker is needed."""

from __future__ import annotations

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
from evomerge_report.folds import folds_of
from evomerge_report.formats import FILTERS
from evomerge_report.history import History, history_of, short_name
from evomerge_report.lineage import lineage_svg
from evomerge_report.result import result_of
from evomerge_report.timeline import timeline_svg
from evomerge_report.trace import summary, trace_of

__all__ = ["STYLE", "environment", "model_card", "prepare_report", "report_page", "write_report"]

_HERE = Path(__file__).parent
STYLE = _HERE / "static" / "style.css"
"""The style sheet of the report, and of the live page."""


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
    page = report_page(history, result)
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


def report_page(history: History, result: dict[str, Any]) -> str:
    """Writes the page as HTML; its pictures lie beside it."""
    champion = result["champion"]
    rows = [("champion", champion)] if champion else []
    rows += [(short_name(source["reference"]), source) for source in result["sources"]]
    return (
        environment()
        .get_template("report.html")
        .render(
            r=result,
            rows=rows,
            notes=notes_of(result),
            recipe=json.dumps(champion["recipe"], indent=2, ensure_ascii=False) if champion else "",
            style=Markup(STYLE.read_text()),  # noqa: S704 - our own file, nothing of a user in it
        )
    )


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
