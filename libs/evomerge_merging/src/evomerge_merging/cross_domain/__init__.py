"""Models of different architectures, depths, widths and vocabularies in one merge.

Before anything is merged, each source that is built otherwise than the target is replaced by a view of it in the
target's names and shapes (`AdaptedStore`); from then on every method works as it always does.
"""

from __future__ import annotations

from evomerge_merging.cross_domain.fit import Fitted, adapt, fit_sources

__all__ = ["Fitted", "adapt", "fit_sources"]
