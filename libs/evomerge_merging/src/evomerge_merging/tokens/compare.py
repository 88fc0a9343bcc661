"""May two embeddings be merged row by row? Only where their rows stand for the same tokens, as far as can be read."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge_common.errors import ModelError
from evomerge_merging.engine.source import Source
from evomerge_merging.tokens.files import same_tokenizer, unread, vocabulary
from evomerge_merging.tokens.vocabulary import embedding_rows

MAX_DIFFERENCE = 0.01
"""Share of token ids that may stand for different tokens (added special tokens, say); more is no one vocabulary."""

Vocabularies = Mapping[str, Mapping[str, int]]


def compare(donor: Source, source: Source, vocabularies: Vocabularies, notes: list[str]) -> None:
    """Makes sure that two embeddings may be merged row by row, and notes where they differ.

    Args:
        donor, source: two sources.
        vocabularies: token → row by source key; empty for one that cannot be read or is not there.
        notes: what is found is added to them.

    Raises:
        ModelError: the vocabularies differ, or one that differs cannot be read.

    """
    check_read(donor, source, vocabularies, notes)
    rows = embedding_rows(donor), embedding_rows(source)
    for one in (donor, source):
        _note_rowless(one, vocabularies, notes)
    first, other = tokens_with_rows(donor), tokens_with_rows(source)
    if other == first or not first or not other:
        return
    different, more = _differing(first, other)
    share = max(len(different), len(more)) / max(len(first), len(other))
    told = ", ".join(repr(token) for token in (different or more)[:3])
    if share > MAX_DIFFERENCE and not (rows[0] != rows[1] and not different):
        raise ModelError(
            f"{donor.label} and {source.label} have different vocabularies ({share:.0%} of the tokens: {told}); "
            "merged row by row, embeddings would mix unrelated tokens: say `tokenizer_source: union`, `base` or a model"
        )
    if rows[0] == rows[1]:
        notes.append(
            f"{donor.label} and {source.label} differ in {max(len(different), len(more))} tokens ({told}): their rows "
            "are merged as they are"
        )


def check_read(chosen: Source, source: Source, vocabularies: Vocabularies, notes: list[str]) -> None:
    """Refuses to take a vocabulary that cannot be read for another's; one that is not there is taken for it, and told.

    Raises:
        ModelError: see above.

    """
    if source is chosen or (vocabularies[chosen.key] and vocabularies[source.key]):
        return
    for one in (chosen, source):
        why = unread(one.folder)
        if why and not same_tokenizer(chosen.folder, source.folder):
            raise ModelError(
                f"{one.label}: {why}; merged row by row, its embedding could mix unrelated tokens with those of "
                f"{(source if one is chosen else chosen).label}: load its tokenizer where that works, and save it to "
                "the folder as tokenizer.json"
            )
    lacking = source if vocabularies[chosen.key] else chosen
    why = "a tokenizer that cannot be read, the same file for all" if unread(lacking.folder) else "no tokenizer"
    notes.append(f"{lacking.label} has {why}: vocabularies are taken to be the same")


def _note_rowless(source: Source, vocabularies: Vocabularies, notes: list[str]) -> None:
    """Notes the tokens that a source's embedding has no row for (padding that was added without resizing it, say)."""
    rows = embedding_rows(source)
    lost = [token for token, row in vocabularies[source.key].items() if row >= rows > 0]
    told = ", ".join(map(repr, lost[:3]))
    note = f"{len(lost)} tokens of {source.label} have no row in its embedding of {rows} rows: {told}"
    if lost and note not in notes:
        notes.append(note)


def tokens_with_rows(source: Source) -> dict[str, int]:
    """Reads a source's tokens that have a row in its embedding; all where no embedding can be told."""
    found, rows = vocabulary(source.folder), embedding_rows(source)
    return {token: row for token, row in found.items() if row < rows or not rows}


def _differing(first: Mapping[str, int], other: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Tokens of the first that have another row in the other, and the other's that the first lacks."""
    different = [token for token, row in first.items() if other.get(token) != row]
    return different, [token for token in other if token not in first]


def disagreement(first: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether two vocabularies are too different to be merged row by row, both being known."""
    if not first or not other or first == other:
        return False
    different, more = _differing(first, other)
    return bool(different) and max(len(different), len(more)) > MAX_DIFFERENCE * max(len(first), len(other))
