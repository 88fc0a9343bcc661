"""A run's event log as a run would write it: three experts, three tasks of 60 items, some forty candidates."""

from __future__ import annotations

import json
import random

from evomerge_common.domain import messages as m
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.suite import Suite
from evomerge_common.ports import Recorded

TASKS = ("arithmetic", "python-code", "sentiment")
OPERATORS = ("crossover", "mutation", "crossover", "random")
METHODS = ("linear", "slerp", "ties", "dare_ties", "task_arithmetic")


def suite(items: int = 60, tasks: tuple[str, ...] = TASKS, holdout: float = 0.4) -> Suite:
    """`items` questions a task."""
    return Suite.from_dict(
        {
            "name": "demo",
            "holdout": holdout,
            "tasks": [
                {"name": name, "kind": "exact_match", "weight": weight,
                 "items": [{"prompt": f"{name} question {i}", "answer": f" {i}"} for i in range(items)]}
                for name, weight in zip(tasks, (1.0, 1.0, 2.0), strict=False)
            ],
        }
    )  # fmt: skip


def events(
    run_id: str = "run-1",
    *,
    candidates: int = 40,
    seed: int = 7,
    gain: float = 0.25,
    end: str = "finished",
    tests: Suite | None = None,
) -> list[Recorded]:
    """The log, in order.

    Args:
        gain: how much better than its sources the search gets; 0: not at all.
        end: finished, running, failed or cancelled.
    """
    tests = tests or suite()
    generator = random.Random(seed)
    names = [task.name for task in tests.tasks]
    log: list[m.Event] = []
    clock = 1_700_000_000.0

    def say(payload: m.Decision | m.Result, seconds: float = 0.2) -> None:
        nonlocal clock
        clock += seconds
        log.append(m.Event(run_id=run_id, payload=payload, time=clock))

    models = [
        m.Model(reference=f"/models/{name}", digest=f"sha256:{i:064x}", uri=f"file:///store/{i:064x}",
                architecture="LlamaForCausalLM", num_layers=4, parameters=1_700_000, bytes=6_800_000)
        for i, name in enumerate(("expert-math", "expert-code", "expert-text"), start=1)
    ]  # fmt: skip
    references = [ModelReference(model.reference, digest=model.digest) for model in models]
    spec = {"models": [model.reference for model in models], "seed": seed, "search": {"evaluations": candidates}}
    say(m.RunStarted(spec_json=json.dumps(spec), request_id="q", version="0.1.0", suite_uri="file:///suite",
                     suite_digest=tests.digest))  # fmt: skip
    for i, model in enumerate(models):
        say(m.ModelReady(job_id=f"d{i}", model=model, seconds=0.4))
    if end == "failed":
        say(m.RunFailed(error=m.ErrorInfo(type="ModelNotFound", message="the hub has no model <org/none>; check it")))
        return [Recorded(i, event) for i, event in enumerate(log, start=1)]

    difficulty = {
        (task.name, split): [generator.random() for _ in tests.items(task, split)]
        for task in tests.tasks
        for split in ("search", "holdout")
    }
    skills: dict[str, list[float]] = {}
    fitness: dict[str, float] = {}

    def evaluated(digest: str, split: str) -> m.CandidateEvaluated:
        scores = []
        for name, skill in zip(names, skills[digest], strict=True):
            noise = random.Random(f"{digest} {name} {split}")
            items = tuple(float(skill + 0.2 * (noise.random() - 0.5) > hard) for hard in difficulty[name, split])
            mean = sum(items) / len(items) if items else 0.0
            scores.append(
                m.TaskScore(task=name, score=mean, metric="exact_match", metric_value=mean, item_scores=items)
            )
        return m.CandidateEvaluated(
            job_id=f"e-{digest[:8]}-{split}", recipe_digest=digest, suite_digest=tests.digest, split=split,
            fitness=tests.fitness({s.task: s.score for s in scores}), scores=tuple(scores), seconds=0.8,
            device="cpu: test processor, float32, 1 thread",
        )  # fmt: skip

    champion = ""
    order: list[str] = []
    for index in range(candidates):
        operator = (
            "source" if index < 3 else "average" if index == 3 else "classic" if index < 12 else OPERATORS[index % 4]
        )
        parents: tuple[str, ...] = ()
        if operator == "source":
            recipe = Recipe.of_source(references[index])
            skill = [0.78 if i == index % len(names) else 0.25 for i in range(len(names))]
        else:
            best = sorted(order, key=lambda digest: -fitness[digest])[:4]
            if operator in {"crossover", "mutation"}:
                parents = tuple(generator.sample(best, 2 if operator == "crossover" else 1))
            ready = min(1.0, index / (0.7 * candidates))
            weights = [generator.random() + 0.1 for _ in references]
            skill = [0.42 + gain * ready + 0.24 * (w - 0.6) + 0.1 * (generator.random() - 0.5) for w in weights]
            skill = (skill * 3)[: len(names)]
            recipe = Recipe.of_models(
                METHODS[index % len(METHODS)], [(r, {"weight": w}) for r, w in zip(references, weights, strict=True)],
                base=references[0], parameters={"density": generator.random()}, seed=index,
            )  # fmt: skip
        digest = recipe.digest
        say(m.CandidateProposed(index=index, recipe_digest=digest, recipe_json=recipe.to_json(), operator=operator,
                                parents=parents, generation=index // 8))  # fmt: skip
        skills[digest] = skill
        if index in {17, 29}:
            error = m.ErrorInfo(type="NonFiniteScore", message="the model answered NaN on <arithmetic> item 12")
            say(
                m.CandidateFailed(
                    job_id=f"e{index}", kind="evaluate", recipe_digest=digest, split="search", error=error
                )
            )
            continue
        say(m.CandidateMerged(job_id=f"m{index}", recipe_digest=digest, uri="file:///scratch", bytes=7, seconds=0.3))
        result = evaluated(digest, "search")
        say(result, 1.0)
        order.append(digest)
        fitness[digest] = result.fitness
        if not champion or result.fitness > fitness[champion]:
            champion = digest
            say(m.ChampionChanged(recipe_digest=digest, fitness=result.fitness, index=index))
        if index % 8 == 7:
            recent = [fitness[d] for d in order[-8:]]
            say(m.CandidateSelected(generation=index // 8, recipe_digests=(champion,)))
            say(m.GenerationCompleted(generation=index // 8, evaluated=len(order), best_fitness=fitness[champion],
                                      mean_fitness=sum(recent) / len(recent),
                                      diversity=0.62 * 0.93**index + 0.05 * generator.random()))  # fmt: skip
    if end == "cancelled":
        say(m.RunCancelled(reason="asked"))
    elif end == "finished":
        say(m.SearchEnded(champion_digest=champion, reason="budget", evaluated=len(order)))
        if tests.holdout:
            for digest in dict.fromkeys((champion, *order[:3])):
                say(evaluated(digest, "holdout"), 0.6)
        say(
            m.ArtifactExported(
                job_id="x",
                recipe_digest=champion,
                format="hf",
                uri="file:///exports/run-1",
                bytes=7,
                notes=("the chat template of /home/me/chat is kept",),
            )
        )
        say(m.RunFinished(champion_digest=champion, reason="budget", fitness=fitness[champion]))
    return [Recorded(i, event) for i, event in enumerate(log, start=1)]
