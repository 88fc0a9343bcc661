"""One reader of fields: what each kind of field takes, and what it says of what it does not take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evomerge_common.domain.fields import Fields
from evomerge_common.errors import RecipeError, SpecError, SuiteError

Read = Callable[[Fields], Any]

WRONG: dict[str, tuple[Any, Read, str]] = {
    "text": (3, lambda own: own.text("x"), "x: must be text, not 3"),
    "word": ("tise", lambda own: own.word("x", ("ties", "linear")), "x: unknown word 'tise'; did you mean 'ties'?"),
    "word in its own name": (1, lambda own: own.word("x", ("a",), what="gate"), "x: unknown gate 1; valid: a"),
    "words": (["a", "b"], lambda own: own.words("x", ("a", "c"), ()), "x[1]: unknown word 'b'; valid: a, c"),
    "no words": ("a", lambda own: own.words("x", ("a", "c"), ()), "x: must be a list of words: a, c"),
    "flag": (1, lambda own: own.flag("x", True), "x: must be true or false, not 1"),
    "integer": (2.0, lambda own: own.integer("x", 1), "x: must be a whole number of at least 0, not 2.0"),
    "integer within": (
        9, lambda own: own.integer("x", 1, low=1, high=8),
        "x: must be a whole number from 1 to 8, not 9",
    ),
    "integer that is a flag": (
        True, lambda own: own.integer("x", 1),
        "x: must be a whole number of at least 0, not True",
    ),
    "number": ("1", lambda own: own.number("x", 1.0), "x: must be a number, not '1'"),
    "number from": (-1, lambda own: own.number("x", 1.0, low=0.0), "x: must be a number of at least 0, not -1"),
    "number within": (2, lambda own: own.number("x", 0.5, low=0.0, high=1.0), "x: must be a number from 0 to 1, not 2"),
    "infinity": (float("inf"), lambda own: own.number("x", 0.5), "x: must be a number, not inf"),
    "no number": (float("nan"), lambda own: own.number("x", 0.5), "x: must be a number, not nan"),
    "entries": ([], lambda own: own.entries("x"), "x: must be a list with at least one entry"),
    "texts": (["a", " "], lambda own: own.texts("x", "must be a list of texts"), "x: must be a list of texts"),
    "a key of a section": (
        {"seeed": 1}, lambda own: own.section("x", ("seed",)),
        "x.seeed: unknown key; did you mean 'seed'?",
    ),
    "a section that is none": (
        [1], lambda own: own.section("x", ("seed",)),
        "x: expected keys and values here, found [1]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told_with_its_place(what: str) -> None:
    value, read, message = WRONG[what]
    for error in (SpecError, SuiteError, RecipeError):
        with pytest.raises(error) as caught:
            read(Fields({"x": value}, (), error))
        assert type(caught.value) is error
        assert str(caught.value) == message
    with pytest.raises(SpecError) as deeper:
        read(Fields({"x": value}, ("models", 0)))
    assert str(deeper.value) == f"models[0].{message}"


def test_what_is_missing_or_null_has_its_default() -> None:
    for own in (Fields({}), Fields({"x": None})):
        assert "x" not in own
        assert (own.text("x"), own.text("x", "a"), own.word("x", ("a",)), own.words("x", ("a",), "a")) == (
            "",
            "a",
            "",
            ("a",),
        )
        assert (own.flag("x", True), own.optional_flag("x"), own.integer("x", 3), own.number("x", 0.5)) == (
            True,
            None,
            3,
            0.5,
        )
        assert (own.optional_number("x"), own.texts("x", ""), own.section("x", ()).data) == (None, (), {})


def test_what_is_quoted_of_a_client_is_short() -> None:
    with pytest.raises(SpecError) as caught:
        Fields.of({"k" * 1_000_000: 1}, ("a",))
    assert len(str(caught.value)) < 300
    with pytest.raises(SpecError) as caught:
        Fields({"x": "v" * 1_000_000}).word("x", ("a",))
    assert len(str(caught.value)) < 1100
