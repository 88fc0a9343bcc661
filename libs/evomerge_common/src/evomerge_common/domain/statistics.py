"""Confidence intervals from the paired bootstrap.

A score of a model is the weighted mean of its tasks' means. The interval around it comes from drawing the items of
each task again, with replacement, and taking the percentiles of the resampled score (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). Two models that answered the same items are compared by resampling
the items' differences, which is the paired bootstrap of Koehn (Statistical Significance Tests for Machine Translation
Evaluation, EMNLP 2004): how hard an item is cancels out, so far fewer items show a difference. Tasks are strata: each
keeps its number of items.

The interval speaks of the items drawn, not of the search: a champion chosen on the same items looks better than it
is, so claims rest on items that selection never saw.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

__all__ = ["Interval", "mean_interval", "paired_difference", "paired_error", "share_at_least"]

MOST_DRAWS = 1_000_000
"""Most drawn items that stay in memory for the next model, at 8 bytes each."""
_Sample = Callable[[Sequence[float]], tuple[float, ...]]


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds of its confidence interval, in the unit of the scores."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Tells whether zero lies outside: for a difference, that it is significant at the interval's level."""
        return self.low > 0 or self.high < 0


def mean_interval(
    tasks: Mapping[str, Sequence[float]],
    weights: Mapping[str, float],
    *,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Returns the percentile bootstrap interval of the weighted mean of task means.

    Args:
        tasks: task name → one score an item.
        weights: task name → weight; only the tasks' own count, and they need not sum to one.
        seed: the same seed and scores give the same interval, whatever the order of `tasks`.
        resamples: bootstrap samples; 2000 puts the bounds of a 95% interval within a few percent of its width.
        level: confidence, between 0 and 1.

    Raises:
        ValueError: no task, a task without items, a missing or negative weight, no weight above zero, a bad level.

    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must be between 0 and 1 and resamples at least 1, not {level} and {resamples}")
    mean, draws = _resampled(tasks, weights, seed=seed, resamples=resamples)
    return Interval(mean, _quantile(draws, (1 - level) / 2), _quantile(draws, (1 + level) / 2))


def share_at_least(scores: Sequence[float], bound: float, *, seed: int, resamples: int = 2000) -> float:
    """Returns the share of bootstrap samples whose mean is at least the bound: how sure it is that it holds.

    Args:
        scores: one an item; of two models their differences.
        bound: in the unit of the scores; a mean so little below it as rounding makes it counts as at it.
        seed: as for `mean_interval`, which resamples likewise.
        resamples: bootstrap samples.

    Raises:
        ValueError: no scores.

    """
    _, draws = _resampled({"": scores}, {"": 1.0}, seed=seed, resamples=resamples)
    return sum(draw >= bound - 1e-9 for draw in draws) / len(draws)


def _resampled(
    tasks: Mapping[str, Sequence[float]], weights: Mapping[str, float], *, seed: int, resamples: int
) -> tuple[float, list[float]]:
    """The weighted mean of task means, and the same of each bootstrap sample, ascending."""
    names = sorted(tasks)
    empty = [name for name in names if not len(tasks[name])]
    if not names or empty:
        raise ValueError(f"no items to resample{': ' + ', '.join(empty) if empty else ''}")
    absent = [name for name in names if not weights.get(name, -1.0) >= 0]
    total = sum(weights[name] for name in names if name not in absent)
    if absent or not total > 0:
        raise ValueError(
            f"tasks need weights of at least zero, and one above it{': ' + ', '.join(absent) * bool(absent)}"
        )
    shares = {name: weights[name] / total for name in names if weights[name] > 0}
    mean = sum(share * (sum(tasks[name]) / len(tasks[name])) for name, share in shares.items())
    draws = [0.0] * resamples
    items = {name: [float(value) for value in tasks[name]] for name in shares}
    varied = [name for name in shares if min(items[name]) < max(items[name])]
    samples = iter(_samples(seed, resamples, tuple(len(items[name]) for name in varied)))
    for name, share in shares.items():
        scores = items[name]
        if name not in varied:  # every resample is the same
            draws = [draw + share * scores[0] for draw in draws]
            continue
        scale = share / len(scores)
        draws = [draw + scale * sum(sample(scores)) for draw, sample in zip(draws, next(samples), strict=True)]
    draws.sort()
    return mean, draws


def _samples(seed: int, resamples: int, counts: tuple[int, ...]) -> Iterable[Iterable[_Sample]]:
    """For each task of so many items, what takes each bootstrap sample of them; the same for all models."""
    return (_remembered if resamples * sum(counts) <= MOST_DRAWS else _drawn)(seed, resamples, counts)


def _drawn(seed: int, resamples: int, counts: tuple[int, ...]) -> Iterator[Iterator[_Sample]]:
    generator = random.Random(seed)
    for count in counts:
        places = list(range(count))
        yield (itemgetter(*generator.choices(places, k=count)) for _ in range(resamples))


@lru_cache(maxsize=16)
def _remembered(seed: int, resamples: int, counts: tuple[int, ...]) -> tuple[tuple[_Sample, ...], ...]:
    return tuple(tuple(samples) for samples in _drawn(seed, resamples, counts))


def paired_difference(
    a: Mapping[str, Sequence[float]],
    b: Mapping[str, Sequence[float]],
    weights: Mapping[str, float],
    *,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Returns the interval of score(a) − score(b) for two models on the same items, item i of `a` being item i of `b`.

    Raises:
        ValueError: different tasks or numbers of items, and as `mean_interval`.

    """
    if set(a) != set(b) or any(len(a[name]) != len(b[name]) for name in a):
        sizes = [{name: len(items) for name, items in side.items()} for side in (a, b)]
        raise ValueError(f"a paired comparison needs the same items on both sides: {sizes[0]} and {sizes[1]}")
    differences = {name: [x - y for x, y in zip(a[name], b[name], strict=True)] for name in a}
    return mean_interval(differences, weights, seed=seed, resamples=resamples, level=level)


def paired_error(
    a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]], weights: Mapping[str, float]
) -> float:
    """Returns the standard error of score(a) − score(b) for two models on the same items, by the items' differences.

    Raises:
        ValueError: different tasks or numbers of items, or no task with two items and a weight above zero.

    """
    shares = {name: weights[name] for name in a if weights[name] > 0 and len(a[name]) > 1}
    if set(a) != set(b) or not shares:
        raise ValueError("a paired comparison needs the same tasks on both sides, with two items or more")
    total = sum(shares.values())
    variance = 0.0
    for name, weight in shares.items():
        differences = [x - y for x, y in zip(a[name], b[name], strict=True)]
        mean = sum(differences) / len(differences)
        unit = sum((one - mean) ** 2 for one in differences) / (len(differences) - 1)
        variance += (weight / total) ** 2 * unit / len(differences)
    return math.sqrt(variance)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the two nearest ranks."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
