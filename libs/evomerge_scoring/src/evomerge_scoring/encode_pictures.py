"""Items with an image: rows of their own, as the model's processor reads the image and the text around it."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge_common.errors import SuiteError
from evomerge_scoring.encode import EncodedTask, Encoder
from evomerge_scoring.joins import split_spaces, starts
from evomerge_scoring.model import Picture, Row

Asked = tuple[str, Sequence[str], str]
"""A prompt, its choices, and an image as a data URL."""


def choices(encoder: Encoder, items: Sequence[Asked], *, chat: bool = False, name: str = "") -> EncodedTask:
    """Choices of items with an image, see `Encoder.choices`; each choice is a row.

    Raises:
        SuiteError: the model reads no images, an item is longer than its context, or a choice has no token.
        ModelError: `chat` asks for a chat template and the processor has none, or a token has no row.

    """
    _check(encoder, name)
    encoded = EncodedTask()
    for prompt, texts, image in items:
        whole, before, wholes = [], [], []
        # To read one the image is prepared, and most choices share theirs.
        contexts: dict[Picture, tuple[int, ...]] = {}
        for text in texts:
            context, choice = split_spaces(prompt, text) if not chat else (prompt, text)
            picture = encoder.sight.picture(context, image, chat=chat)
            whole.append(Picture(picture.text + choice, image, picture.rendered))
            if picture not in contexts:
                contexts[picture] = _ids(encoder, picture, name, encoder.context)
            before.append(contexts[picture])
            wholes.append(_ids(encoder, whole[-1], name, encoder.context))
        group = []
        for picture, ids, start in zip(whole, wholes, starts(before, wholes, compared=True), strict=True):
            if not 0 < start < len(ids):
                raise SuiteError(f"task {name!r}: a choice of the item {prompt[-60:]!r} has no token of its own")
            group.append([(len(encoded.rows), query) for query in range(len(ids) - start)])
            queries = tuple((place - 1, ids[place]) for place in range(start, len(ids)))
            encoded.rows.append(Row(ids, queries, picture=picture))
        encoded.groups.append(group)
    return encoded


def prompts(
    encoder: Encoder, items: Sequence[tuple[str, str]], max_new_tokens: int, *, chat: bool = False, name: str = ""
) -> EncodedTask:
    """Prompts with an image (a data URL) to continue.

    Raises:
        SuiteError, ModelError: see `choices`.

    """
    _check(encoder, name)
    encoded = EncodedTask()
    for prompt, image in items:
        picture = encoder.sight.picture(prompt, image, chat=chat)
        _ids(encoder, picture, name, encoder.context - max_new_tokens)
        encoded.prompts.append(picture)
    return encoded


def _check(encoder: Encoder, name: str) -> None:
    encoder.sight.check(name)
    if encoder.masked or encoder.decoder_start is not None:
        raise SuiteError(f"task {name!r} has items with images; of models that read them, only causal ones are scored")


def _ids(encoder: Encoder, picture: Picture, name: str, room: int) -> tuple[int, ...]:
    """Its tokens, which must fit: what is cut from the left is the image."""
    ids = encoder.sight.ids(picture)
    encoder.check_rows([token for token in ids if token != encoder.sight.image_id])
    room = max(1, room)
    if len(ids) > room:
        raise SuiteError(
            f"task {name!r}: an item has {len(ids)} tokens with its image, and {room} fit; use a smaller image or a "
            "shorter prompt"
        )
    return ids
