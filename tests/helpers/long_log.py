"""A long search's log, made in one pass: thousands of candidates, with genomes, workers, races and failures."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from evomerge_common.domain import messages as m
from evomerge_common.domain.genome import Genome
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.ports import Recorded

TASKS = ("arithmetic", "python-code", "sentiment")
METHODS = ("linear", "ties", "dare_ties", "task_arithmetic")
OPERATORS = ("crossover", "mutation", "breed", "crossover")
SOURCES = ("expert-math", "expert-code", "expert-text")
POPULATION = 16


def recorded(run_id: str = "long", *, candidates: int = 5000, items: int = 300, **more: object) -> list[Recorded]:
    """The log with sequence numbers from 1."""
    found = events(run_id, candidates=candidates, items=items, **more)  # type: ignore[arg-type]
    return [Recorded(place, event) for place, event in enumerate(found, start=1)]


def events(
    run_id: str = "long",
    *,
    candidates: int = 5000,
    items: int = 300,
    seed: int = 1,
    suite_uri: str = "",
    note: str = "a note",
    source: str = SOURCES[0],
) -> Iterator[m.Event]:
    """Yields a run under way: some candidates fail, some are stopped by a race, the last one waits for its scores.

    Args:
        items: of all tasks together, on the search split.
        note: what a merge has to say.
        source: name of the first source.

    """
    generator = random.Random(seed)
    each = items // len(TASKS)
    clock = 1_700_000_000.0

    def event(payload: m.Decision | m.Result, worker: str = "", seconds: float = 0.05) -> m.Event:
        nonlocal clock
        clock += seconds
        return m.Event(run_id=run_id, payload=payload, time=clock, worker=worker, began=clock - 0.4 if worker else 0.0)

    names = (source, *SOURCES[1:])
    references = [ModelReference(f"org/{name}", digest=f"sha256:{i:064x}") for i, name in enumerate(names, start=1)]
    spec = {"models": [one.name for one in references], "seed": seed,
            "search": {"evaluations": candidates + 50, "population": POPULATION}}  # fmt: skip
    shapes = tuple(m.TaskShape(task=task, weight=1.0 + (place == 2), items=each) for place, task in enumerate(TASKS))
    yield event(m.RunStarted(spec_json=json.dumps(spec), version="0.1.0", suite_uri=suite_uri, tasks=shapes))
    for place, one in enumerate(references):
        model = m.Model(reference=str(one), digest=one.digest, uri="file:///store", parameters=1_700_000, num_layers=4,
                        architecture="LlamaForCausalLM", commit=f"{place:040x}", licence="apache-2.0")  # fmt: skip
        yield event(m.ModelReady(job_id=f"d{place}", model=model, seconds=0.4), "downloader-1")
    best: list[tuple[float, str]] = []
    parents: tuple[str, ...]
    for index in range(candidates):
        progress = min(1.0, index / (0.8 * candidates))
        if index < len(references):
            operator, parents, recipe, genome = "source", (), Recipe.of_source(references[index]), ""
            skills = [0.75 if place == index else 0.3 for place in range(len(TASKS))]
        else:
            operator = "random" if index < POPULATION else OPERATORS[generator.randrange(len(OPERATORS))]
            pool = [digest for _, digest in best[:POPULATION]]
            parents = () if operator == "random" else tuple(generator.sample(pool, 1 if operator == "mutation" else 2))
            weights = [round(0.2 + generator.random() * (1 + progress * (place == 2)), 4) for place in range(3)]
            method = METHODS[min(len(METHODS) - 1, int(generator.random() ** (1 + 2 * progress) * len(METHODS)))]
            density = round(0.3 + 0.5 * progress * generator.random(), 4)
            recipe = Recipe.of_models(method, [(r, {"weight": w}) for r, w in zip(references, weights, strict=True)],
                                      base=references[0], parameters={"density": density}, seed=index)  # fmt: skip
            genome = Genome(method, weights=(tuple(weights),), density=(density,), sigma=0.3 - 0.2 * progress).to_json()
            skills = [0.4 + 0.25 * progress + 0.25 * (generator.random() - 0.5) for _ in TASKS]
        digest = recipe.digest
        yield event(m.CandidateProposed(index=index, recipe_digest=digest, recipe_json=recipe.to_json(),
                                        parents=parents, genome_json=genome, operator=operator,
                                        generation=index // POPULATION))  # fmt: skip
        if index == candidates - 1:
            return
        if index > 20 and index % 97 == 0:
            error = m.ErrorInfo(type="NonFiniteScore", message="the model answered NaN on <arithmetic> item 12")
            yield event(m.CandidateFailed(job_id=f"e{index}", kind="evaluate", recipe_digest=digest, error=error))
            continue
        yield event(m.CandidateMerged(job_id=f"m{index}", recipe_digest=digest, uri="file:///s", bytes=7, seconds=0.3,
                                      notes=(note,) if index == 3 else ()), f"merger-{index % 2}", 0.3)  # fmt: skip
        is_stopped = index > 20 and index % 13 == 0
        count = each // 4 if is_stopped else each
        scores = []
        for task, skill in zip(TASKS, skills, strict=True):
            values = tuple(float(generator.random() < skill) for _ in range(count))
            mean = sum(values) / count
            positions = tuple(range(count)) if is_stopped else ()
            scores.append(m.TaskScore(task=task, score=mean, metric="exact_match", metric_value=mean,
                                      item_scores=values, positions=positions))  # fmt: skip
        fitness = (scores[0].score + scores[1].score + 2 * scores[2].score) / 4
        evaluated = m.CandidateEvaluated(job_id=f"e{index}", recipe_digest=digest, split="search", fitness=fitness,
                                         scores=tuple(scores), seconds=0.8, partial=is_stopped,
                                         device="cpu: test processor, float32, 1 thread")  # fmt: skip
        yield event(evaluated, f"evaluator-{index % 3}", 0.8)
        if is_stopped:
            estimates = tuple(m.TaskScore(task=one.task, score=one.score) for one in scores)
            yield event(m.CandidateRaced(recipe_digest=digest, index=index, stopped=True, items=3 * count,
                                         fitness=fitness, low=fitness - 0.1, high=fitness + 0.1,
                                         scores=estimates))  # fmt: skip
            continue
        if not best or fitness > best[0][0]:
            yield event(m.ChampionChanged(recipe_digest=digest, fitness=fitness, index=index))
        best = sorted([*best, (fitness, digest)], key=lambda one: -one[0])[: 2 * POPULATION]
        if index % POPULATION == POPULATION - 1:
            yield event(m.GenerationCompleted(generation=index // POPULATION, evaluated=index + 1,
                                              best_fitness=best[0][0], mean_fitness=best[-1][0],
                                              diversity=0.6 - 0.4 * progress))  # fmt: skip
