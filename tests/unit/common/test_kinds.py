"""Kinds of task: what a suite with every one of them is, to the byte."""

from __future__ import annotations

import pytest

from evomerge_common.domain.kinds import KINDS, Kind
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import SuiteError
from helpers.every_kind import TASKS, every_kind
from helpers.tiny_models import suite_of


def test_a_suite_of_every_kind_keeps_its_digest() -> None:
    suite = every_kind()
    assert {task.kind for task in suite.tasks} == set(KINDS) == {task["kind"] for task in TASKS}
    assert suite.digest == "3227d0044c4525b8f9a06271a4b8ca8ca684ee934540203150aa7efbbe9c35bc"
    assert Suite.from_json(suite.to_json()) == suite


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_kind_says_what_it_is(kind: Kind) -> None:
    assert KINDS[kind.name] is kind
    assert kind.summary
    assert set(kind.texts) <= {*kind.fields, *kind.optional}
    assert set(kind.filled) <= set(kind.texts)
    assert set(kind.paths) <= set(kind.options)
    assert kind.document_field in {"", *kind.fields}


def test_an_extract_that_is_no_pattern_is_refused_when_the_suite_is_read() -> None:
    with pytest.raises(SuiteError, match=r"extract.*no regular expression"):
        suite_of("exact_match", [{"prompt": "a", "answer": "b"}], extract="(")
    with pytest.raises(SuiteError, match=r"unknown kind of task 'exact'.*exact_match"):
        suite_of("exact", [])
