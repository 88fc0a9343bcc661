"""The result folder from an event log: the verdict is honest, the files are whole, nothing is left unescaped."""

import base64
import dataclasses
import hashlib
import html
import json
import struct
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt

from evomerge_common.domain import messages as m
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import InvalidInput
from evomerge_common.ports import Recorded
from evomerge_models.card import hub_ids
from evomerge_report.card import notes_of
from evomerge_report.history import History, history_of
from evomerge_report.lineage import ancestors, lineage_rows, lineage_svg, lineage_text
from evomerge_report.report import model_card, page_data, report_page, write_report
from evomerge_report.result import licences_of, pareto_front, result_of
from helpers import synthetic_log
from helpers.hub_writer import yaml_errors

SUITE = synthetic_log.suite()


@pytest.fixture(scope="module")
def history() -> History:
    return history_of(synthetic_log.events())


@pytest.fixture(scope="module")
def result(history: History) -> dict[str, object]:
    return result_of(history, SUITE)


class Collector(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_sources_of_one_name_keep_their_licences(result: dict, tmp_path: Path) -> None:
    models = [
        m.Model(reference=str(tmp_path / place / "final"), digest=f"sha256:{place * 64}", licence=licence)
        for place, licence in (("a", "gpl-2.0"), ("b", "apache-2.0"))
    ]
    references = [ModelReference(model.reference, digest=model.digest) for model in models]
    recipes = [*map(Recipe.of_source, references), Recipe.of_models("linear", [(one, {}) for one in references])]
    payloads: list[m.Decision | m.Result] = [m.ModelReady(job_id=model.digest, model=model) for model in models]
    payloads += [
        m.CandidateProposed(
            index=index, recipe_digest=recipe.digest, recipe_json=recipe.to_json(),
            operator="source" if index < 2 else "average",
        )
        for index, recipe in enumerate(recipes)
    ]  # fmt: skip
    start = synthetic_log.events()[0].event
    events = [start, *(m.Event(run_id=start.run_id, payload=payload) for payload in payloads)]
    history = history_of([Recorded(number, event) for number, event in enumerate(events, start=1)])
    plan = licences_of(history.candidates[recipes[-1].digest], history)
    assert plan.licences == {"final": "gpl-2.0", "final (2)": "apache-2.0"}
    assert plan.conflicts
    for model in models:
        Path(model.reference).mkdir(parents=True)
        (Path(model.reference) / "README.md").write_text(
            f"---\nlanguage: {'de' if 'gpl' in model.licence else 'fr'}\n---\n"
        )
    champion = {**result["champion"], "recipe": recipes[-1].to_dict()}
    card = model_card({**result, "champion": champion, "licences": plan.to_dict()})
    assert "| final | gpl-2.0 |\n| final (2) | apache-2.0 |" in card
    assert ModelCard(card).data.language == ["de", "fr"]


def test_writes_the_whole_folder(tmp_path: Path) -> None:
    log = synthetic_log.events()
    result = write_report(log, SUITE, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "report", "result.json"]
    report = tmp_path / "report"
    assert sorted(path.name for path in report.iterdir()) == [
        "benchmark_comparison.png", "benchmark_report.html", "diversity_plot.png", "fitness_plot.png",
        "hypervolume.png", "index.html", "lineage.svg", "pareto_front.png", "timeline.svg",
    ]  # fmt: skip
    for picture in report.glob("*.png"):
        data = picture.read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG")
        assert width > 600
        assert height > 400
    assert json.loads((tmp_path / "result.json").read_text()) == result
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["sequence"] for line in lines] == [item.sequence for item in log]
    page = (report / "index.html").read_text()
    assert page == (report / "benchmark_report.html").read_text()
    pictures = [attributes["src"] for tag, attributes in Collector(page).tags if tag == "img"]
    assert pictures
    assert all(source and (report / source).is_file() for source in pictures)
    loaded = [value for _, attributes in Collector(page).tags for value in attributes.values() if value]
    assert not [value for value in loaded if "http:" in value or "https:" in value], "nothing is loaded from elsewhere"
    assert "default-src 'none'" in page
    assert not [tag for tag, attributes in Collector(page).tags if tag == "script" and "src" in attributes]


def test_result_of_an_improvement(result: dict, history: History) -> None:
    assert (result["run_id"], result["status"], result["reason"], result["seed"]) == ("run-1", "finished", "budget", 7)
    gain = result["improvement"]
    assert gain["improved"] is gain["excludes_zero"] is True
    assert gain["interval95"][0] < gain["holdout_difference"] < gain["interval95"][1]
    assert gain["statement"].startswith("The champion improved on its best source, expert-text, by +0.249")
    champion = result["champion"]
    difference = champion["holdout"]["fitness"] - next(
        s["holdout"]["fitness"] for s in result["sources"] if s["reference"] == gain["against"]
    )
    assert gain["holdout_difference"] == pytest.approx(difference)
    assert gain["search_holdout_gap"] == pytest.approx(champion["search"]["fitness"] - champion["holdout"]["fitness"])
    best = max(result["sources"], key=lambda s: s["search"]["fitness"])
    assert result["best_source"]["reference"] == best["reference"] == gain["against"]
    assert (
        gain["versus_best_by_holdout"]["reference"]
        == max(result["sources"], key=lambda s: s["holdout"]["fitness"])["reference"]
    )
    assert (result["evaluations"], result["proposed"], result["failed"]) == (38, 40, 2)
    search = sum(len(SUITE.items(task, "search")) for task in SUITE.tasks)
    holdout = sum(len(SUITE.items(task, "holdout")) for task in SUITE.tasks)
    assert result["items_scored"] == 38 * search + 4 * holdout
    assert result["merge_seconds"] == pytest.approx(38 * 0.3)
    assert result["evaluation_seconds"] == pytest.approx(42 * 0.8)
    assert champion["search"]["fitness"] == max(c.fitness or 0.0 for c in history.scored)
    json.dumps(result)


def test_same_log_same_result(result: dict) -> None:
    assert result_of(history_of(synthetic_log.events()), SUITE) == result


def test_says_when_nothing_improved() -> None:
    result = result_of(history_of(synthetic_log.events(gain=-0.2)), SUITE)
    gain = result["improvement"]
    assert not gain["improved"]
    assert "did not improve on its sources" in gain["statement"]
    assert "did not improve" in model_card(result)


def test_champion_that_is_a_source() -> None:
    log = [r for r in synthetic_log.events(gain=-1.0) if not isinstance(r.event.payload, m.CandidateFailed)]
    result = result_of(history_of(log), SUITE)
    assert result["champion"]["is_source"]
    assert result["improvement"]["improved"] is False
    assert "is one of them" in result["improvement"]["statement"]


def test_worse_than_a_source_is_said() -> None:
    history = history_of(synthetic_log.events())
    assert history.champion is not None
    worst = history.champion.results["holdout"]
    zero = tuple(dataclasses.replace(s, score=0.0, item_scores=(0.0,) * len(s.item_scores)) for s in worst.scores)
    history.champion.results["holdout"] = dataclasses.replace(worst, fitness=0.0, scores=zero)
    gain = result_of(history, SUITE)["improvement"]
    assert gain["excludes_zero"]
    assert not gain["improved"]
    assert "it is worse than" in gain["statement"]


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_runs_that_did_not_finish(end: str, tmp_path: Path) -> None:
    result = write_report(synthetic_log.events(end=end), SUITE, tmp_path)
    assert result["status"] == end
    assert result["improvement"] is None
    assert (result["champion"] is None) == (end == "failed")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "The run failed: the hub has no model &lt;org/none&gt;" in page if end == "failed" else "not" in page.lower()


def test_suite_without_holdout_and_with_one_task(tmp_path: Path) -> None:
    suite = synthetic_log.suite(tasks=("only",), holdout=0.0)
    result = write_report(synthetic_log.events(tests=suite), suite, tmp_path)
    assert result["improvement"] is None
    assert "its suite holds none out" in (tmp_path / "report" / "index.html").read_text()
    assert "optimistic" in model_card(result)


def test_log_of_one_event(tmp_path: Path) -> None:
    assert write_report(synthetic_log.events()[:1], SUITE, tmp_path)["status"] == "preparing"


def test_refuses_no_events_and_mixed_runs() -> None:
    with pytest.raises(InvalidInput, match="no events"):
        history_of([])
    mixed = [
        *synthetic_log.events("a"),
        *(dataclasses.replace(r, sequence=r.sequence + 999) for r in synthetic_log.events("b")),
    ]
    with pytest.raises(InvalidInput, match="two runs"):
        history_of(mixed)


def test_redelivered_events_change_nothing(result: dict) -> None:
    log = synthetic_log.events()
    twice = [item for pair in zip(log, log, strict=True) for item in pair]
    assert result_of(history_of(twice), SUITE) == result


def test_first_result_of_a_candidate_wins() -> None:
    log = synthetic_log.events()
    first = next(r for r in log if isinstance(r.event.payload, m.CandidateEvaluated))
    assert isinstance(first.event.payload, m.CandidateEvaluated)
    late = dataclasses.replace(first.event.payload, fitness=99.0)
    log.append(Recorded(len(log) + 1, dataclasses.replace(first.event, payload=late)))
    assert max(c.fitness or 0.0 for c in history_of(log).scored) < 1.0


def test_page_escapes_what_users_write() -> None:
    log = synthetic_log.events()
    evil = "</td><script>alert(1)</script>"
    error = m.ErrorInfo(type="X", message=evil)
    failed = m.CandidateFailed(kind="merge", recipe_digest=evil, error=error)
    log.insert(5, Recorded(5, m.Event(run_id="run-1", payload=failed, time=1.0)))
    log = [dataclasses.replace(r, sequence=i) for i, r in enumerate(log, start=1)]
    history = history_of(log)
    result = result_of(history, SUITE)
    assert result["warnings"] == []
    page = report_page(history, {**result, "warnings": [f"task {evil}"]})
    assert "Mind: task &lt;/td&gt;" in page
    assert not [tag for tag, _ in Collector(page).tags if tag == "script"]
    assert "&lt;script&gt;" in page


def test_the_page_has_its_views_with_it_and_nothing_in_them_is_markup() -> None:
    """The injection corpus in every text of the log: names, prompts, answers, run ids."""
    evil = "</script><script>alert(1)</script><!-- \u2028 ]]> & \"'"
    suite = Suite.from_dict({**SUITE.to_dict(), "tasks": [
        {**task, "items": [{**item, "prompt": f"{evil} {place}"} for place, item in enumerate(task["items"])]}
        for task in SUITE.to_dict()["tasks"]
    ]})  # fmt: skip
    log = []
    for one in synthetic_log.events(evil, tests=suite):
        payload = one.event.payload
        if isinstance(payload, m.CandidateEvaluated):
            scores = tuple(dataclasses.replace(score, answers=(m.Answer(text=evil),)) for score in payload.scores)
            payload = dataclasses.replace(payload, scores=scores)
        log.append(dataclasses.replace(one, event=dataclasses.replace(one.event, payload=payload)))
    history = history_of(log)
    result = result_of(history, suite)
    data = page_data(log, suite)
    page = report_page(history, result, data)
    scripts = [attributes for tag, attributes in Collector(page).tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}], "ours, and no other"
    held = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert json.loads(held) == json.loads(json.dumps(data))
    assert evil in data["candidates"][history.champion_digest]["answers"][0]["texts"]
    script = page.rsplit("<script>", 1)[1].rsplit("</script>", 1)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page, "no script but ours runs"
    card = MarkdownIt().render(model_card(result).split("---", 2)[2])
    assert evil.split("\u2028", maxsplit=1)[0].strip() in html.unescape(card)
    assert not {tag for tag, _ in Collector(card).tags} & {"script", "img", "a"}


def test_pareto_front_is_what_the_definition_says(history: History) -> None:
    def beaten(own: dict[str, float], other: dict[str, float]) -> bool:
        return other != own and all(other[t] >= own[t] for t in own)

    every = [c.scores("search") for c in history.scored]
    expected = [c.index for c in history.scored if not any(beaten(c.scores("search"), other) for other in every)]
    assert [c.index for c in pareto_front(history.scored)] == expected
    assert 0 < len(expected) < len(every)


def test_lineage(history: History) -> None:
    nodes = ancestors(history, history.champion_digest)
    assert nodes[0].candidate is history.champion
    levels = {node.candidate.digest: node.level for node in nodes}
    assert all(levels[p] < node.level for node in nodes for p in node.candidate.proposal.parents if p in levels)
    ET.fromstring(lineage_svg(history))
    ET.fromstring(lineage_svg(History()))


def test_notes_name_no_folder_whatever_is_in_its_name() -> None:
    references = ["/home/al ice/my, model", "./near/a", "../up/b", "~/c d+/home/al ice/lora x", "/home/al ice/my"]
    notes = ["/home/al ice/my, model and /home/al ice/my: kept", "./near/a, ../up/b; ~/c d+/home/al ice/lora x"]
    exports = [{"format": "hf", "notes": [*notes, "/somewhere/else/y of org/near/a"]}]
    assert notes_of({"exports": exports, "sources": [{"reference": one} for one in references]}) == [
        "my, model and my: kept", "a, b; c d+lora x", "y of org/near/a",
    ]  # fmt: skip


def test_model_card(result: dict) -> None:
    card = model_card(result)
    assert "## Kept, adapted, left out\n\n* the chat template of chat is kept\n" in card, "without the author's folders"
    assert card.startswith("---\n")
    assert result["improvement"]["statement"] in card
    assert "| arithmetic | 0.750 [0.550, 0.900] |" in card
    assert result["champion"]["recipe_digest"] in card
    assert "/models/" not in card, "the author's folders stay private"


def test_the_cards_head_is_what_the_hub_takes(result: dict[str, Any], tmp_path: Path) -> None:
    """Of a hub's model, a folder and a folder's adapter on a hub's base the ids alone are base models."""
    changed = json.loads(json.dumps(result).replace("/models/expert-math", "org/math@v2"))
    changed = json.loads(json.dumps(changed).replace("/models/expert-code", "org/base+/home/me/lora"))
    for source in changed["sources"][:2]:
        source["commit"] = "0" * 40
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "mergekit_config.yml").write_text("merge_method: linear\n")
    text = model_card(changed, tmp_path)
    assert yaml_errors(text) == []
    assert "/home/me" not in text
    assert "/models/" not in text
    assert "| org/base+lora | 0000" in text
    data = ModelCard(text).data
    sources = Recipe.from_dict(changed["champion"]["recipe"]).sources()
    assert data.base_model == list(hub_ids(sources))
    assert set(data.base_model) <= {"org/math", "org/base"}
    assert (data.base_model_relation, data.pipeline_tag) == ("merge", "text-generation")
    assert data.tags == ["merge", "evomerge", "mergekit"]
    name, results = model_index_to_eval_results(data.to_dict()["model-index"])
    assert name.startswith("EvoMerge champion ")
    assert [one.task_name for one in results] == [*synthetic_log.TASKS, "weighted mean of all tasks"]
    assert {one.dataset_split for one in results} == {"holdout"}
    holdout = changed["champion"]["holdout"]
    assert results[0].metric_value == holdout["tasks"]["arithmetic"]["metric_value"]
    assert results[0].metric_name == "exact_match (95% interval 0.550 to 0.900)"
    assert results[0].dataset_args["suite_digest"] == changed["suite"]["digest"]
    assert results[-1].metric_value == holdout["fitness"]


def test_a_champion_without_holdout_or_merge_claims_neither(result: dict[str, Any]) -> None:
    alone = {**result, "champion": {**result["champion"], "holdout": None, "is_source": True}}
    data = ModelCard(model_card(alone)).data
    assert data.eval_results is None
    assert data.tags == ["evomerge"]
    assert yaml_errors(model_card(alone)) == []


def test_the_hypervolume_only_grows_and_no_dominated_point_is_in_the_front(
    history: History, result: dict[str, Any]
) -> None:
    volumes = [one["hypervolume"] for one in result["hypervolume"]]
    assert volumes == sorted(volumes)
    assert volumes[-1] > volumes[0] > 0.0
    points = [tuple(one["scores"].values()) for one in result["pareto_front"]]
    everyone = [tuple(one.scores("search").values()) for one in history.scored]
    for point in points:
        assert not any(other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in everyone)


def test_lineage_as_text_names_every_ancestor_once_and_its_operator(history: History) -> None:
    text = lineage_text(history)
    rows = lineage_rows(history)
    assert text.splitlines()[0].startswith(rows[0]["name"])
    assert rows[0]["recipe_digest"] == history.champion_digest
    for row in rows:
        own = [line for line in text.splitlines() if row["recipe_digest"][:12] in line and "(see above)" not in line]
        assert own
        assert row["operator"] in own[0]
