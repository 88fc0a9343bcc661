"""What the log of a run says: each fact of it has its meaning here, for all who ask."""

from __future__ import annotations

from collections.abc import Iterable


def mean_fitness(scored: Iterable[tuple[int, float]], *, last: int, population: int) -> float | None:
    """Computes the mean fitness of a run as it stands: of those scored on all items in the last generation's places.

    Args:
        scored: (index, fitness) of candidates that were scored on all items.
        last: index of the last candidate that counts, in order of proposal.
        population: how many candidates a generation has.

    Returns:
        None where none of the last `population` candidates has a score.

    """
    found = [fitness for index, fitness in scored if last - population < index <= last]
    return sum(found) / len(found) if found else None
