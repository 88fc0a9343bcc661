"""The end of a run: report, model card, and the table that says whether it was worth it."""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evomerge_cli.console import Console
from evomerge_cli.folds import folds_in
from evomerge_cli.run_folder import RunFolder
from evomerge_common.domain.suite import Suite
from evomerge_common.ports import Recorded
from evomerge_common.runtime.files import write_atomically

log = logging.getLogger(__name__)


class Preparation:
    """Prepares the report of a run in a thread while its last scores are waited for."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self._thread: threading.Thread | None = None

    def begin(self, events: Sequence[Recorded]) -> None:
        """Begins, with the log so far."""
        self._thread = threading.Thread(target=self._prepare, args=(events,), name="report", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits until what was begun is done."""
        if self._thread is not None:
            self._thread.join()

    def _prepare(self, events: Sequence[Recorded]) -> None:
        from evomerge_report.report import prepare_report

        try:
            prepare_report(events, self._suite)
        except Exception:  # the report itself says what is wrong
            log.debug("the report could not be prepared", exc_info=True)


def finish(folder: RunFolder, console: Console, *, out: Path | None = None) -> dict[str, Any]:
    """Writes report/, result.json and the champion's card from a folder's event log, and prints the verdict."""
    result = report(folder.events(), folder.suite(), out or folder.out, folds=folds_in(folder.out))
    show(result, out or folder.out, console)
    return result


def report(
    events: Iterable[Recorded], suite: Suite, out: Path, *, folds: Sequence[tuple[Sequence[Recorded], Suite]] = ()
) -> dict[str, Any]:
    """Writes report/ and result.json, and what the champion's folder says of it if it lies in OUT/model."""
    from evomerge_models.card import CARD
    from evomerge_report.card import model_card
    from evomerge_report.eval_results import write_eval_results
    from evomerge_report.report import write_report

    result = write_report(events, suite, out, folds=folds)
    if (out / "model").is_dir():
        write_atomically(out / "model" / CARD, model_card(result, out / "model"))
        write_eval_results(result, out / "model")
    return result


def show(result: dict[str, Any], out: Path, console: Console) -> None:
    """Shows the verdict, and where everything is."""
    if not console.data(result):
        print_table(result, console)
        for key in ("controls", "folds"):
            if found := result.get(key):
                console.out(found["statement"])
        for what, path in (("model", out / "model"), ("gguf", out / "gguf"), ("report", out / "report" / "index.html")):
            if path.exists():
                console.out(f"{what}: {path}")
        for line in _next(out) if (out / "model").is_dir() else ():
            console.say(line)


def _next(out: Path) -> Iterator[str]:
    """What is typed after a run."""
    where = str(out.relative_to(Path.cwd())) if out.is_relative_to(Path.cwd()) else str(out)
    yield "next:"
    for words in (
        ["generate", f"{where}/model", "--prompt", "…"],
        ["export", where, f"{where}.gguf", "--gguf", "q8_0"],
        ["push", where, "me/my-merge", "--dry-run"],
    ):
        yield f"  {shlex.join(['evomerge', *words])}"


def print_table(result: dict[str, Any], console: Console) -> None:
    """Shows champion and sources, task by task, on the items that the search never saw."""
    champion = result["champion"]
    if champion is None:
        console.out("no candidate could be scored")
        return
    split = "holdout" if champion.get("holdout") else "search"
    tasks = list(champion[split]["tasks"])
    rows = []
    for name, entry in [("champion", champion), *((Path(s["reference"]).name, s) for s in result["sources"])]:
        scores = entry.get(split)
        if scores is None:
            rows.append([name, *["-"] * len(tasks), "-"])
            continue
        rows.append([name, *(f"{scores['tasks'][t]['score']:.3f}" for t in tasks), _with_interval(scores)])
    console.table(["model", *tasks, "mean [95%]"], rows, title=f"Scores on the {split} items")
    for one in result.get("constraints") or ():
        console.out(f"constraint: {one['statement']}")
    gain = result.get("improvement")
    if gain is None:
        console.out("Nothing is proven: the suite holds no items out.")
        return
    rows = [
        [task, Path(one["against"]).name, _signed(one), f"{one['wins']} / {one['losses']} / {one['ties']}"]
        for task, one in gain["tasks"].items()
    ]
    heads = ["task", "best source of it", "champion minus it [95%]", "items better / worse / alike"]
    console.table(heads, rows, title="Champion against the best source of each task")
    console.out(gain["statement"])
    for text in gain["specialists"]:
        console.out(f"warning: {text}")


def _with_interval(scores: dict[str, Any]) -> str:
    bounds = scores.get("interval95")
    return f"{scores['fitness']:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")


def _signed(compared: dict[str, Any]) -> str:
    low, high = compared["interval95"]
    return f"{compared['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
