"""README.md of an exported model, from a result: honest about what was shown and what was not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from evomerge_common.domain.licence_names import UNKNOWN
from evomerge_common.domain.licences import LicencePlan, by_source
from evomerge_common.domain.recipe import Recipe, public_names
from evomerge_common.domain.reference import ModelReference, without_folders
from evomerge_models import card as cards
from evomerge_report.history import short_name

_NAMES = re.compile(r"(?<![\w.])[/~](?:[^\s/,:;+']+/)+[^\s/,:;+']+")
_MARKS = re.compile(r"[\\`*\[\]]|&(?=#|\w+;)")
"""What would begin a link, emphasis, code or a character reference; an underscore within a word is none."""
LIMITS = (
    "The scores say how the model answers this suite's items, and nothing beyond them. Merging carries over the "
    "sources' licences, biases and faults: read their cards."
)


def model_card(result: dict[str, Any], folder: Path | None = None) -> str:
    """Writes Markdown with front matter: verdict, scores with 95% intervals on items never selected on, recipe.

    Args:
        result: see `result_of`.
        folder: of the finished model, whose config and files say what it is; None: nothing is said of that.

    """
    champion = result.get("champion") or {}
    sources = result.get("sources") or []
    gain = result.get("improvement")
    verdict = gain["statement"] if gain else "Nothing is proven: the run has no scores on held-out items."
    found = (
        f"Found by EvoMerge {result.get('version', '')} in run {_plain(result['run_id'])} (seed {result['seed']}): "
        f"{result['evaluations']} candidates were scored, {result['failed']} failed."
    )
    parts = [
        _metadata(result, folder).front_matter(), "# A merged language model", "", found, "",
        f"**{_plain(verdict)}**", "",
        *_losses(gain), *_constraints(result), *_controls(result), *_sources(sources), "", *_scores(result), "",
        *_notes(result), *_licence_section(result),
        *_samples(result), "## Recipe", "", *_in_words(champion),
        f"Digest `{champion.get('recipe_digest', '')}`. The recipe rebuilds these weights bit for bit.", "",
        "```json", json.dumps(public_names(champion.get("recipe")), indent=2, ensure_ascii=False), "```", "",
        "## Limits", "", LIMITS, "",
    ]  # fmt: skip
    return "\n".join(parts)


def notes_of(result: dict[str, Any]) -> list[str]:
    """Lists what the champion's merge noted as taken over, adapted or left out, without the author's folders."""
    sources = [ModelReference.parse(source["reference"]) for source in result.get("sources") or []]
    names = {part for source in sources for part in (source.name, source.adapter)}
    return [
        _NAMES.sub(lambda match: short_name(match[0]), without_folders(note, names))
        for one in {one["format"]: one for one in result["exports"]}.values()
        for note in one["notes"]
    ]


def _metadata(result: dict[str, Any], folder: Path | None) -> cards.Metadata:
    champion = result.get("champion") or {}
    if champion.get("recipe"):
        references = Recipe.from_dict(champion["recipe"]).sources()
    else:
        references = [ModelReference.parse(source["reference"]) for source in result.get("sources") or []]
    library, task = cards.of_folder(folder) if folder else ("transformers", "")
    expressible = folder is not None and (folder / "mergekit_config.yml").exists()
    merged = not champion.get("is_source")
    head = cards.Metadata(
        base_models=cards.hub_ids(references),
        relation="merge" if merged else "",
        library=library,
        pipeline_tag=task,
        tags=(*(["merge"] if merged else []), "evomerge", *(["mergekit"] if merged and expressible else [])),
        name=f"EvoMerge champion {champion.get('recipe_digest', '')[:12]}",
        scores=_held_out(result, champion.get("holdout")),
    )
    # Of a hub's model the card is not in the store: `evomerge push` asks the hub.
    parts = cards.parts_of(references)
    known = by_source((str(one.public), cards.metadata_of_source(Path(one.name).expanduser())) for one in parts)
    head = head.drawn_from(known)
    plan = _licences(result)
    return head if plan is None or plan.licence == UNKNOWN else head.under(plan)


def _licences(result: dict[str, Any]) -> LicencePlan | None:
    found = result.get("licences")
    return LicencePlan.from_dict(found) if found else None


def _licence_section(result: dict[str, Any]) -> list[str]:
    plan = _licences(result)
    return cards.licence_section(plan) if plan is not None else []


def _held_out(result: dict[str, Any], measured: dict[str, Any] | None) -> tuple[cards.HeldOutScore, ...]:
    """The champion's scores for `model-index`: of items that the search never saw, or none."""
    if not measured:
        return ()
    suite = result["suite"]

    def one(task: str, items: int, metric: str, value: float, note: str = "") -> cards.HeldOutScore:
        return cards.HeldOutScore(suite["name"], suite["digest"], task, items, metric, value, note)

    scores = [
        one(name, own["items"], own["metric"], own["metric_value"], _interval(own))
        for name, own in measured["tasks"].items()
    ]
    everything = {"score": measured["fitness"], "metric_value": measured["fitness"], **measured}
    items = sum(score.items for score in scores)
    return (*scores, one("weighted mean of all tasks", items, "score", measured["fitness"], _interval(everything)))


def _interval(entry: dict[str, Any]) -> str:
    """The interval of a score in words; where the metric has another unit, the score with it."""
    bounds = entry.get("interval95")
    if not bounds:
        return ""
    words = f"95% interval {bounds[0]:.3f} to {bounds[1]:.3f}"
    return words if entry["score"] == entry["metric_value"] else f"score {entry['score']:.3f}, {words}"


def _notes(result: dict[str, Any]) -> list[str]:
    notes = notes_of(result)
    return ["## Kept, adapted, left out", "", *(f"* {note}" for note in notes), ""] if notes else []


def _constraints(result: dict[str, Any]) -> list[str]:
    found = [f"* Constraint: {_plain(one['statement'])}." for one in result.get("constraints") or ()]
    return [*found, ""] if found else []


def _losses(gain: dict[str, Any] | None) -> list[str]:
    """Where the champion is worse than a source, right below the verdict."""
    found = [f"* {_plain(text)}." for text in gain["specialists"]] if gain else []
    return [*found, ""] if found else []


def _controls(result: dict[str, Any]) -> list[str]:
    """How the champion stands against null candidates, and the procedure on several folds, where the run had some."""
    return [line for key in ("controls", "folds") if result.get(key) for line in (_plain(result[key]["statement"]), "")]


def _in_words(champion: dict[str, Any]) -> list[str]:
    """What the recipe does, and what each source gives to each layer."""
    shares = champion.get("shares")
    if not shares:
        return []
    lines = [*(f"* {_plain(text)}" for text in champion["words"]), ""]
    if champion.get("is_source"):
        return lines
    lines += ["| part of the model | " + " | ".join(_cell(name) for name in shares["sources"]) + " |",
              "|---|" + "---|" * len(shares["sources"])]  # fmt: skip
    for row in reversed(shares["rows"]):
        cells = ["n/a" if share is None else f"{share:.2f}" for share in row["shares"]]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    note = "" if shares["exact"] else " What the method thins out, elects or turns is not in them."
    return [*lines, "", f"Numbers are what each source is weighed with.{note}", ""]


def _samples(result: dict[str, Any]) -> list[str]:
    """What the champion and the sources wrote to a few items that the search used."""
    lines = []
    for one in result.get("samples") or ():
        lines += [f"{_plain(one['task'])}, asked:", "", *_fenced(one["asked"])]
        for name, text in one["answers"].items():
            lines += [f"{_plain(name)}:", "", *_fenced(text)]
    return ["## Some answers", "", "To items that the search used.", "", *lines] if lines else []


def _fenced(text: str) -> list[str]:
    """A text as it is, in a fence that nothing in it ends."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", text, fence, ""]


def _sources(sources: list[dict[str, Any]]) -> list[str]:
    lines = ["## Sources", "", "| model | commit | digest |", "|---|---|---|"]
    for source in sources:
        name = str(ModelReference.parse(source["reference"]).public)
        lines.append(f"| {_cell(name)} | {source.get('commit') or 'local folder'} | `{source['digest'][:19]}…` |")
    return lines


def _scores(result: dict[str, Any]) -> list[str]:
    champion = result.get("champion") or {}
    split = "holdout" if champion.get("holdout") else "search"
    ours = champion.get(split)
    if not ours:
        return []
    shown = [s for s in result["sources"] if s.get(split)]
    title = "Scores on held-out items" if split == "holdout" else "Scores on the items that selection used (optimistic)"
    against = gain["tasks"] if (gain := result.get("improvement")) else {}
    heads = [_cell(short_name(s["reference"])) for s in shown] + (
        ["against the best source of the task"] if against else []
    )
    lines = [
        f"## {title}", "", "Higher is better; 95% bootstrap intervals in brackets.", "",
        "| task | this model | " + " | ".join(heads) + " |",
        "|---|---|" + "---|" * len(heads),
    ]  # fmt: skip
    for task in ours["tasks"]:
        cells = [_number(m["tasks"].get(task)) for m in (ours, *(s[split] for s in shown))]
        cells += [_against(against.get(task))] if against else []
        lines.append(f"| {_cell(task)} | " + " | ".join(cells) + " |")
    overall = [_number({"score": m["fitness"], **m}) for m in (ours, *(s[split] for s in shown))]
    overall += [""] if against else []
    lines.append("| **weighted mean** | " + " | ".join(overall) + " |")
    return [*lines, "", gain["tasks_note"]] if gain and against else lines


def _against(entry: dict[str, Any] | None) -> str:
    """The paired difference to the best source of a task, with the items that either answers better."""
    if entry is None:
        return "n/a"
    low, high = entry["interval95"]
    items = f"items: {entry['wins']} better, {entry['losses']} worse"
    return f"{entry['difference']:+.3f} [{low:+.3f}, {high:+.3f}] to {_cell(short_name(entry['against']))}; {items}"


def _number(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "n/a"
    interval = entry.get("interval95")
    return f"{entry['score']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """A text of a user's on one line, as Markdown that shows it and makes nothing of it."""
    shown = _MARKS.sub(r"\\\g<0>", " ".join(text.split()))
    return shown.replace("<", "&lt;").replace(">", "&gt;")
