"""A genome in a few numbers, for the drift of parameters over a search."""

from __future__ import annotations

import json
from statistics import fmean


def genes_of(genome_json: str) -> dict[str, float]:
    """Takes the mean of each kind of gene over the rows of a genome.

    Returns:
        `weight 0`, `weight 1` … (of an ingredient), `density`, `mask 0` … (share that is dropped), `layers` (of a
        path), `sigma` (mutation strength): those that the genome has. Empty for a genome that cannot be read.

    """
    try:
        genome = json.loads(genome_json or "{}")
        found: dict[str, float] = {}
        for place, column in enumerate(zip(*genome.get("weights", []), strict=True)):
            found[f"weight {place}"] = round(fmean(column), 6)
        if genome.get("density"):
            found["density"] = round(fmean(genome["density"]), 6)
        for place, share in enumerate(genome.get("mask", [])):
            found[f"mask {place}"] = round(float(share), 6)
        if genome.get("path"):
            found["layers"] = float(len(genome["path"]))
        if "sigma" in genome:
            found["sigma"] = round(float(genome["sigma"]), 6)
    except (ValueError, TypeError, AttributeError):
        return {}
    return found
