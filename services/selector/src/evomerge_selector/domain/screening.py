"""Asks a cheap model of the landscape before an expensive one: of several children the most promising is proposed.

Surrogate-assisted evolution (Jin 2011, "Surrogate-assisted evolutionary computation"): kernel ridge regression over
the genomes that have scores, plus a bonus for distance from them, so that the search still looks where it knows
nothing. Plain floats in a fixed order, so that the same log gives the same choice; a window keeps the cost of a
question at some milliseconds however long the run is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul
from statistics import median

from evomerge_common.domain.genome import Genome

BEST, LATEST = 24, 12
"""How many of the fittest and of the newest individuals the model is made of."""
RIDGE = 0.02
CURIOSITY = 0.6
"""Worth of one typical distance from everything known, in standard deviations of fitness."""
METHOD_APART = 0.7
STEPS = 8

Vector = tuple[float, ...]


@dataclass
class Screen:
    """Regression over what it was told; `choose` picks among genomes."""

    methods: tuple[str, ...]
    known: list[tuple[float, int, Vector]] = field(default_factory=list)

    def tell(self, genome: Genome, fitness: float, index: int) -> None:
        """One more scored genome; one without weights teaches nothing."""
        vector = self._vector(genome)
        if vector is None or fitness == float("-inf"):
            return
        self.known.append((-fitness, index, vector))
        if len(self.known) > BEST + LATEST:
            latest = sorted(self.known, key=lambda one: one[1])[-LATEST:]
            rest = sorted(set(self.known) - set(latest))
            self.known = sorted([*rest[:BEST], *latest])

    def choose(self, genomes: Sequence[Genome]) -> int:
        """Index of the most promising genome; the first when nothing can be said."""
        vectors = [self._vector(genome) for genome in genomes]
        points = [vector for _, _, vector in self.known]
        if len(points) < 8 or vectors[0] is None:
            return 0
        apart = [[math.dist(a, b) for b in points[:i]] for i, a in enumerate(points)]
        width = median([d for row in apart for d in row]) or 1.0
        scores = [-negative for negative, _, _ in self.known]
        mean = sum(scores) / len(scores)
        spread = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores)) or 1.0
        kernel = [[1.0 + RIDGE] * len(points) for _ in points]
        for i, row in enumerate(apart):
            for j, d in enumerate(row):
                kernel[i][j] = kernel[j][i] = math.exp(-((d / width) ** 2))
        weights = _solve(kernel, [(s - mean) / spread for s in scores])

        def promise(vector: Vector | None) -> float:
            if vector is None:
                return -math.inf
            distances = [math.dist(vector, point) for point in points]
            expected = sum(w * math.exp(-((d / width) ** 2)) for w, d in zip(weights, distances, strict=True))
            return expected + CURIOSITY * min(1.0, min(distances) / width)

        return max(range(len(vectors)), key=lambda i: (promise(vectors[i]), -i))

    def _vector(self, genome: Genome) -> Vector | None:
        if not genome.weights or genome.ingredients:
            return None
        method = [METHOD_APART if genome.method == name else 0.0 for name in self.methods]
        density = genome.density or (1.0,) * len(genome.weights)
        return (*(w for row in genome.weights for w in row), *(0.5 * d for d in density), *method)


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Conjugate gradients (Hestenes & Stiefel 1952) for a symmetric positive definite matrix; few steps are enough."""
    solution = [0.0] * len(right)
    residual = list(right)
    direction = list(right)
    norm = sum(map(mul, residual, residual))
    for _ in range(STEPS):
        if norm < 1e-10:
            break
        image = [sum(map(mul, row, direction)) for row in matrix]
        step = norm / sum(map(mul, direction, image))
        solution = [x + step * d for x, d in zip(solution, direction, strict=True)]
        residual = [r - step * i for r, i in zip(residual, image, strict=True)]
        fresh = sum(map(mul, residual, residual))
        direction = [r + fresh / norm * d for r, d in zip(residual, direction, strict=True)]
        norm = fresh
    return solution
