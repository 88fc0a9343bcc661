"""The proof of a champion: its score and the sources' on the holdout, and its files."""

from __future__ import annotations

from dataclasses import dataclass, field

from evomerge_common.domain.messages import ExportJob, Job, SearchEnded


def export_part(written_as: str) -> str:
    """Names an export as a part of the proof."""
    return "export gguf" if written_as == "gguf" else "export"


def search_part(digest: str) -> str:
    """Names a control's score on the search split as a part of the proof."""
    return f"search {digest}"


def format_of(job: Job | None) -> str:
    """Tells the format of an export job; empty for any other."""
    return job.payload.format if job is not None and isinstance(job.payload, ExportJob) else ""


@dataclass
class Proven:
    """What has been proven of a run, at whichever of its ends.

    Attributes:
        parts: parts of a proof that are there; a later one does without.
        exports: format → recipe digest of the champion that was written in it last.

    """

    parts: set[str] = field(default_factory=set)
    exports: dict[str, str] = field(default_factory=dict)


@dataclass
class Proof:
    """What the end of the search was, and what is missing before the run is finished.

    Attributes:
        ended: the champion, and why the search ended.
        missing: recipe digests to be scored on the holdout, exports (`export_part`), and controls to be scored on the
            search split (`search_part`).

    """

    ended: SearchEnded
    missing: set[str]

    def tick_off(self, part: str) -> bool:
        """Notes that a part is there; tells whether it was the last."""
        if part not in self.missing:
            return False
        self.missing.remove(part)
        return not self.missing
