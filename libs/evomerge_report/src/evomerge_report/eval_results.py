"""`.eval_results/` of a model's repository: scores that the Hub shows with the benchmark that they are of.

Only of tasks whose suite names a benchmark on the Hub, and of items that the search never saw. The format is
https://huggingface.co/docs/hub/eval-results; its reader and writer are huggingface_hub's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from evomerge_common.runtime.files import remove, write_atomically

FOLDER = ".eval_results"
FILE = "evomerge.yaml"


def entries_of(result: Mapping[str, Any]) -> list[EvalResultEntry]:
    """Returns an entry for each task with a benchmark, of the champion's scores on held-out items.

    Args:
        result: see `result_of`.

    """
    measured = (result.get("champion") or {}).get("holdout")
    if not measured:
        return []
    return [
        EvalResultEntry(
            dataset_id=named["dataset"],
            task_id=named["task"],
            dataset_revision=named.get("revision"),
            value=measured["tasks"][task["name"]]["metric_value"],
            notes=_notes(task, measured["tasks"][task["name"]], result),
        )
        for task in result["suite"]["tasks"]
        if (named := task.get("benchmark")) and task["name"] in measured["tasks"]
    ]


def write_eval_results(result: Mapping[str, Any], model: Path) -> bool:
    """Writes the champion's entries beside its card; tells whether there were any. What was there before goes."""
    remove(model / FOLDER / FILE)
    entries = entries_of(result)
    if entries:
        (model / FOLDER).mkdir(exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=120)
        write_atomically(model / FOLDER / FILE, text)
    return bool(entries)


def _notes(task: Mapping[str, Any], measured: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What a reader must know before a comparison: it is a part of the items, and another part was selected on."""
    whole = task["search_items"] + task["holdout_items"]
    bounds = measured.get("interval95")
    span = f", 95% interval {bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""
    return (
        f"{measured['metric']} on {measured['items']} held-out items of {whole}; the others were the search's{span}. "
        f"EvoMerge {result.get('version', '')}, run {result['run_id']}"
    )
