"""Which candidate comes next, and which results its proposal may read.

Candidate k is proposed from the results of candidates 0 … needed(k)−1, in proposal order, with a random generator
seeded by (run seed, k). Nothing here is part of a run's state: all of it follows from spec, models and results.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from random import Random

from evomerge_common.domain.cross_domain import CrossDomain
from evomerge_common.domain.genome import Genome
from evomerge_common.domain.messages import CandidateProposed, EarlierCandidate, Model
from evomerge_common.domain.methods import traits_of
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.search_space import SearchSpace, builds_differ
from evomerge_common.domain.spec import RunSpec
from evomerge_common.errors import RecipeError, SpecError
from evomerge_selector.domain.candidate import Candidate
from evomerge_selector.domain.feasibility import penalised, violation
from evomerge_selector.domain.grading import Grading
from evomerge_selector.domain.initial_population import initial_population
from evomerge_selector.domain.operators import mutate, random_genome
from evomerge_selector.domain.strategy import Proposal, ScoredCandidate, make_strategy


class Proposer:
    """Asks the run's strategy, after the sources and the fixed first merges."""

    def __init__(self, spec: RunSpec, models: Mapping[str, Model], earlier: Sequence[EarlierCandidate] = ()) -> None:
        """Makes space and strategy of a run.

        Args:
            spec: of the run.
            models: its models, by reference.
            earlier: candidates of earlier runs, best first; those of other models are left out. The strategy is told
                those with scores after the sources; the best one, and genomes without scores, are the first merges.

        Raises:
            SpecError: the strategy has no means on this space or machine.

        """
        self._spec = spec
        self._search = spec.search
        self.space = search_space(spec, models)
        self._strategy = make_strategy(self.space, self._search, seed=spec.seed)
        sources = _sources(spec, self.space)
        fitting = self._fitting(earlier)
        self._earlier = [one for one in fitting if one.scores]
        begun = [*self._earlier[:1], *(one for one in fitting if not one.scores)]
        seen = {one.proposed.recipe_digest for one in fitting}
        fixed = [
            (operator, genome)
            for operator, genome in initial_population(self.space, spec.classic)
            if not seen or self._recipe(Proposal(genome, operator)).digest not in seen
        ]
        self._first = [*sources, *(("earlier", one.genome) for one in begun), *fixed]
        self.sources = min(len(sources), self._search.evaluations)
        # Some fresh blood: children of one earlier search alone may never leave its hill.
        fresh = self._search.population // 4 if self._earlier else 0
        first_generation = max(self._search.population - len(self._earlier), len(self._first) + fresh)
        # A race has more candidates than evaluations.
        is_race = bool(self._search.racing.rungs)
        self.first_generation = first_generation if is_race else min(self._search.evaluations, first_generation)
        self._grading = Grading()
        self._seen = 0
        self._asked = 0

    def generation_of(self, index: int) -> int:
        """Tells the generation of a candidate."""
        if index < self.first_generation:
            return 0
        return 1 + (index - self.first_generation) // self._search.population

    def needed(self, index: int) -> int:
        """Tells how many results, in proposal order, the proposal of candidate `index` reads."""
        if self._search.schedule == "steady":
            return max(0, index - self._search.in_flight + 1)
        generation = self.generation_of(index)
        return 0 if generation == 0 else self.first_generation + (generation - 1) * self._search.population

    @property
    def deciding(self) -> int:
        """Counts the results that decide what steers the search: those that the strategy's first proposal may read."""
        return max(self.sources, self.needed(self.first_generation))

    def propose(
        self, candidates: Sequence[Candidate], known: Container[str], grading: Grading
    ) -> CandidateProposed | None:
        """Proposes the candidate after those; None when the space seems to hold none whose recipe is not known."""
        self._grading = grading
        index = len(candidates)
        if self._strategy.is_stateful:  # after a fold of the log, it is asked again what it was asked before
            for past in range(max(self._asked, self.first_generation), index):
                self._tell(candidates, self.needed(past))
                self._strategy.ask(past, Random(f"{self._spec.seed}:{past}"))
        self._asked = index + 1
        self._tell(candidates, self.needed(index))
        proposal, recipe = self._novel(index, known)
        if recipe is None:
            return None
        return CandidateProposed(
            index=index,
            recipe_digest=recipe.digest,
            recipe_json=recipe.to_json(),
            genome_json=proposal.genome.to_json(),
            operator=proposal.operator,
            parents=proposal.parents,
            generation=self.generation_of(index),
        )

    def _tell(self, candidates: Sequence[Candidate], count: int) -> None:
        """Tells the strategy the results of the first `count`, as far as it does not know them."""
        if count < self._grading.waits_for:
            return
        notes: list[ScoredCandidate] = []
        for one in candidates[self._seen : count]:
            if one.proposed.index == self.sources:
                notes += [self._note(self._judged(known, candidates)) for known in self._earlier]
            if one.proposed.recipe_digest not in self._earlier_digests:  # else it has been told
                notes.append(self._note(one))
        self._strategy.tell_all(notes)
        self._seen = max(self._seen, count)

    def _note(self, one: Candidate) -> ScoredCandidate:
        """Makes of a result what strategies are told."""
        steered, scores = self._grading.steered(one)
        return ScoredCandidate.unread(
            one.proposed.genome_json,
            digest=one.proposed.recipe_digest,
            fitness=penalised(steered, one.violation),
            index=one.proposed.index,
            scores=scores,
            violation=one.violation,
            error=one.fitness_error,
        )

    # ---- candidates of earlier runs ----

    def _fitting(self, earlier: Sequence[EarlierCandidate]) -> list[Candidate]:
        """Those that this run could propose, and of its models: by the digests in their recipes."""
        found = []
        for place, one in enumerate(earlier):
            try:
                genome = Genome.from_json(one.genome_json)
                digest = self._recipe(Proposal(genome, "earlier")).digest
            except (RecipeError, ValueError, LookupError, TypeError):
                continue  # of another number of models or layers
            if digest == one.recipe_digest and genome.method in self.space.methods:
                proposed = CandidateProposed(
                    index=place - len(earlier),  # below all of this run's
                    recipe_digest=digest,
                    genome_json=one.genome_json,
                    operator="earlier",
                )
                credit = tuple((mean, 1) for mean in one.credits)
                found.append(Candidate(proposed, one.fitness, one.scores, credits=credit))
        return found

    def _judged(self, known: Candidate, candidates: Sequence[Candidate]) -> Candidate:
        """Returns it with what it violates by the bounds of this run, whose sources have been scored by now."""
        if not self._spec.constraints:
            return known
        tasks, sources = [one.task for one in self._grading.tasks], candidates[: len(self._spec.sources)]
        return replace(known, violation=violation(known, self._spec, tasks, sources))

    @cached_property
    def _earlier_digests(self) -> frozenset[str]:
        return frozenset(one.proposed.recipe_digest for one in self._earlier)

    def _novel(self, index: int, known: Container[str]) -> tuple[Proposal, Recipe | None]:
        """Finds a proposal whose recipe the run has not had yet."""
        rng = Random(f"{self._spec.seed}:{index}")
        if index < len(self._first):
            operator, genome = self._first[index]
            proposal = Proposal(genome, operator)
        elif index < self.first_generation:
            proposal = Proposal(random_genome(self.space, rng), "random")
        else:
            proposal = self._strategy.ask(index, rng)
        for attempt in range(40):
            recipe = self._recipe(proposal)
            repeats = recipe.digest in self._earlier_digests and proposal.operator != "earlier"
            if recipe.digest not in known and not repeats:
                return proposal, recipe
            if attempt < 10 and not (proposal.genome.path and attempt > 4):
                proposal = Proposal(mutate(proposal.genome, self.space, rng), "mutation", proposal.parents)
            else:
                proposal = Proposal(random_genome(self.space, rng), "random")
        return proposal, None

    def _recipe(self, proposal: Proposal) -> Recipe:
        if proposal.operator != "source":
            return with_rules(self.space.recipe(proposal.genome), self._spec)
        row = proposal.genome.weights[0]
        if 1.0 in row:
            return self.space.source(self.space.models[row.index(1.0)])
        assert self.space.base is not None
        return self.space.source(self.space.base)


def with_rules(recipe: Recipe, spec: RunSpec) -> Recipe:
    """Returns the recipe with what the spec says of instructions, where it says anything."""
    preserve = spec.preserve_instruction
    return recipe if preserve is None else replace(recipe, preserve_instruction=preserve)


def search_space(spec: RunSpec, models: Mapping[str, Model]) -> SearchSpace:
    """Makes the space of a run over these models; where they are built differently, all are fitted to the target."""
    references = {name: replace(ModelReference.parse(name), digest=model.digest) for name, model in models.items()}
    cross_domain = spec.cross_domain
    known = [models[name] for name in spec.sources]
    depth = max(1, models[spec.target].num_layers)
    granularity = spec.search.layer_granularity
    if cross_domain is not None or builds_differ((m.architecture, m.num_layers, m.parameters) for m in known):
        cross_domain = replace(cross_domain or CrossDomain(), target=references[spec.target])
    held = [models[spec.target]] if cross_domain is not None else known
    layers = next((word for word in ("whole", "in_place") if any(model.layers == word for model in held)), "")
    methods = spec.search.methods
    if layers == "whole":
        methods = tuple(name for name in methods if not traits_of(name).is_path)
        if not methods:
            raise SpecError(
                f"{' and '.join(spec.search.methods)} take layers apart, and those of {spec.target} cannot be told "
                "apart: list methods that merge whole models, such as linear",
                ("search", "methods"),
            )
    return SearchSpace(
        models=tuple(references[name] for name in spec.models),
        base=references[spec.base] if spec.base else None,
        num_layers=depth,
        groups=-(-depth // granularity) if granularity else spec.search.layer_groups,
        methods=methods,
        dtype=spec.dtype,
        genes=spec.search.genes,
        cross_domain=cross_domain,
        layers=layers,
        fixed_scale=any(model.fixed_scale for model in held),
    )


def _sources(spec: RunSpec, space: SearchSpace) -> list[tuple[str, Genome]]:
    """Makes a genome of each model as it is, and the base where it is none of them."""
    count = len(spec.models)
    found = [
        ("source", Genome("linear", weights=(tuple(float(i == j) for j in range(count)),) * space.rows))
        for i in range(count)
    ]
    if len(spec.sources) > count:
        found.append(("source", space.uniform("linear", weight=0.0)))
    return found
