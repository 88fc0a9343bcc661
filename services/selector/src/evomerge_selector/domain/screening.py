"""Asks a cheap model of the landscape before an expensive one: of several children the most promising is proposed.

Surrogate-assisted evolution (Jin 2011, "Surrogate-assisted evolutionary computation"): a Gaussian process (Rasmussen &
Williams 2006) over the scored genomes, judged by an upper confidence bound (Srinivas et al. 2010), so that the search
still looks where the model knows little. Its length scale is the most likely of four. Plain floats in a fixed order, so
that the same log gives the same choice; a window keeps the cost of a question at some milliseconds however long the run
is. What is answered depends on what was told alone, never on how often was asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul
from statistics import median

from evomerge_common.domain.genome import Genome, SearchSpace

BEST, LATEST = 20, 10
"""How many of the fittest and of the newest individuals the model is made of."""
NOISE = 0.02
"""Variance of a score that the genes do not explain, in variances of fitness."""
CURIOSITY = 0.25
"""Worth of one standard deviation of doubt."""
SCALES = (0.5, 0.8, 1.2, 2.0)
"""Length scales to choose from, in median distances of the window."""
METHOD_APART = 0.5
DENSITY_APART = 0.5
ENOUGH = 8
"""Points below which nothing is said."""

Vector = tuple[float, ...]
Point = tuple[float, int, Vector]
"""(−fitness, index, genes): sorts best first."""


@dataclass
class Screen:
    """The model of what it was told; `choose` picks among genomes."""

    space: SearchSpace
    known: list[Point] = field(default_factory=list)
    _told: int = 0
    _earlier: list[list[Point]] = field(default_factory=lambda: [[] for _ in SCALES])
    _likelihood: dict[int, float] = field(default_factory=dict)
    _fitted: tuple[int, Process | None] = (0, None)  # after how many tells, and the model

    def tell(self, genome: Genome, fitness: float, index: int) -> None:
        """One more scored genome; one without weights teaches nothing."""
        vector = self._vector(genome)
        if vector is None or fitness == float("-inf"):
            return
        self.known = sorted([*self.known, (-fitness, index, vector)])
        if len(self.known) > BEST + LATEST:
            latest = sorted(self.known, key=lambda one: one[1])[-LATEST:]
            rest = [one for one in self.known if one not in latest]
            self.known = sorted([*rest[:BEST], *latest])
        # A length scale is judged on every fourth state of the window, each on another, so that a question costs two
        # decompositions and not four.
        turn = self._told % len(SCALES)
        self._told += 1
        self._earlier[turn] = self.known
        self._likelihood.pop(turn, None)

    def choose(self, genomes: Sequence[Genome]) -> int:
        """Index of the most promising genome; the first when nothing can be said."""
        vectors = [self._vector(genome) for genome in genomes]
        if len(self.known) < ENOUGH or len(genomes) == 1:
            return 0
        model = self._model()
        if model is None:
            return 0
        best, promise = 0, -math.inf
        for place, vector in enumerate(vectors):
            value = -math.inf if vector is None else model.promise(vector, beyond=promise)
            if value > promise:
                best, promise = place, value
        return best

    def _model(self) -> Process | None:
        if self._fitted[0] != self._told:
            self._fitted = (self._told, self._fit())
        return self._fitted[1]

    def _fit(self) -> Process | None:
        for turn, points in enumerate(self._earlier):
            if turn not in self._likelihood and len(points) >= ENOUGH:
                fitted = Process.fit(points, SCALES[turn])
                self._likelihood[turn] = -math.inf if fitted is None else fitted.likelihood
        if not self._likelihood:
            return None
        return Process.fit(self.known, SCALES[max(self._likelihood, key=lambda turn: (self._likelihood[turn], turn))])

    def _vector(self, genome: Genome) -> Vector | None:
        """Genes as they act: a mean knows only shares, and is otherwise a sum of task vectors."""
        if not genome.weights or genome.ingredients:
            return None
        rows: Sequence[Sequence[float]] = genome.weights
        if genome.method in {"linear", "slerp"}:
            rows = [[w / (sum(row) or 1.0) for w in row] for row in rows]
        apart = [
            METHOD_APART if genome.method == name else 0.0
            for name in self.space.methods
            if name not in {"linear", "task_arithmetic"}
        ]
        density = genome.density or (1.0,) * len(genome.weights)
        cuts = genome.cuts or self.space.even_cuts
        mask = genome.mask or (0.0,) * len(self.space.models)
        return (
            *(w for row in rows for w in row),
            *(DENSITY_APART * d for d in density),
            *(cut / self.space.num_layers for cut in cuts),
            *(DENSITY_APART * rate for rate in mask),
            *apart,
        )


@dataclass
class Process:
    """A Gaussian process with a squared exponential kernel, fitted; fitness is told in its own standard deviations."""

    points: list[Vector]
    width: float
    lower: list[list[float]]
    weights: list[float]
    likelihood: float

    @classmethod
    def fit(cls, known: Sequence[Point], scale: float) -> Process | None:
        """None when every point is the same."""
        points = [vector for _, _, vector in known]
        apart = [[math.dist(a, b) for b in points[:i]] for i, a in enumerate(points)]
        width = scale * median([d for row in apart for d in row])
        if width <= 0.0:
            return None
        lower = _cholesky([[math.exp(-((d / width) ** 2)) for d in row] + [1.0 + NOISE] for row in apart])
        scores = [-negative for negative, _, _ in known]
        mean = sum(scores) / len(scores)
        spread = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores)) or 1.0
        forward = _forward(lower, [(s - mean) / spread for s in scores])
        likelihood = -0.5 * sum(map(mul, forward, forward)) - sum(math.log(row[-1]) for row in lower)
        return cls(points, width, lower, _backward(lower, forward), likelihood)

    def promise(self, vector: Vector, *, beyond: float) -> float:
        """Upper confidence bound; −inf without the cost of a variance where it cannot exceed `beyond`."""
        near = [math.exp(-((math.dist(vector, point) / self.width) ** 2)) for point in self.points]
        mean = sum(map(mul, near, self.weights))
        if mean + CURIOSITY * math.sqrt(1.0 + NOISE) <= beyond:
            return -math.inf
        forward = _forward(self.lower, near)
        variance = 1.0 + NOISE - sum(map(mul, forward, forward))
        return float(mean + CURIOSITY * math.sqrt(max(0.0, variance)))


def _cholesky(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """Lower triangle L with L·Lᵀ = a symmetric positive definite matrix, of which the lower triangle is given."""
    lower: list[list[float]] = []
    for row in matrix:
        found: list[float] = []
        for above, value in zip(lower, row, strict=False):
            found.append((value - sum(map(mul, found, above))) / above[-1])
        found.append(math.sqrt(max(1e-12, row[-1] - sum(map(mul, found, found)))))
        lower.append(found)
    return lower


def _forward(lower: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """The x with L·x = right."""
    found: list[float] = []
    for row, value in zip(lower, right, strict=True):
        found.append((value - sum(map(mul, row, found))) / row[-1])
    return found


def _backward(lower: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """The x with Lᵀ·x = right."""
    rest, found = list(right), [0.0] * len(right)
    for i in range(len(lower) - 1, -1, -1):
        found[i] = rest[i] / lower[i][-1]
        for j, value in enumerate(lower[i][:-1]):
            rest[j] -= value * found[i]
    return found
