"""`export.push_to` of a run spec."""

import pytest

from evomerge_common.domain.spec import RunSpec
from evomerge_common.errors import SpecError

MODELS = {"models": ["org/a", "org/b"]}


def test_push_to_travels_and_is_not_written_where_it_is_not_asked_for() -> None:
    spec = RunSpec.from_dict({**MODELS, "export": {"push_to": "me/x"}})
    assert spec.push_to == "me/x"
    assert RunSpec.from_json(spec.to_json()) == spec
    assert "push_to" not in RunSpec.from_dict(MODELS).to_json(), "the log of other runs is what it always was"


@pytest.mark.parametrize("name", ["x", "me/a/b", "../x", "me/..", "https://hf.co/me/x", "me/a--b"])
def test_push_to_is_a_name_that_a_repository_can_have(name: str) -> None:
    with pytest.raises(SpecError, match=r"export\.push_to: must be a repository of the hub"):
        RunSpec.from_dict({**MODELS, "export": {"push_to": name}})
