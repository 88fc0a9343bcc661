"""The dataclasses and the .proto files say the same."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from evomerge_common.adapters import codec
from evomerge_common.domain import messages
from evomerge_common.domain.messages import Event, Job, TaskScore
from evomerge_common.errors import InvalidInput

KINDS = [c for _, c in inspect.getmembers(messages, dataclasses.is_dataclass) if c.__module__ == messages.__name__]
SCALARS = {
    FieldDescriptor.TYPE_STRING: str,
    FieldDescriptor.TYPE_BOOL: bool,
    FieldDescriptor.TYPE_INT32: int,
    FieldDescriptor.TYPE_INT64: int,
    FieldDescriptor.TYPE_UINT64: int,
    FieldDescriptor.TYPE_DOUBLE: float,
    FieldDescriptor.TYPE_FLOAT: float,
}


def payloads(kind: type) -> tuple[type, ...]:
    hint = typing.get_type_hints(kind)["payload"]
    return typing.get_args(hint)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_fields_are_equal(kind: type) -> None:
    descriptor = codec.message_class(kind.__name__).DESCRIPTOR
    hints = typing.get_type_hints(kind)
    ours = [f.name for f in dataclasses.fields(kind) if f.name != "payload"]
    theirs = [f for f in descriptor.fields if f.containing_oneof is None]
    assert sorted(ours) == sorted(f.name for f in theirs)
    for field in theirs:
        hint = hints[field.name]
        if field.is_repeated:
            assert typing.get_origin(hint) is tuple, field.name
            hint = typing.get_args(hint)[0]
        expected = getattr(messages, field.message_type.name) if field.message_type else SCALARS[field.type]
        assert hint is expected, field.name
    if "payload" in hints:
        oneof = descriptor.oneofs_by_name["payload"]
        assert sorted(f.message_type.name for f in oneof.fields if f.message_type) == sorted(
            p.__name__ for p in payloads(kind)
        )


def sample(kind: type) -> Any:
    """A value with every field set to something that is not its default."""
    hints = typing.get_type_hints(kind)
    return kind(**{f.name: _value(hints[f.name]) for f in dataclasses.fields(kind)})


def _value(hint: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        return (_value(typing.get_args(hint)[0]),) * 2
    if isinstance(hint, types.UnionType):
        return sample(typing.get_args(hint)[0])
    if dataclasses.is_dataclass(hint):
        return sample(typing.cast("type", hint))
    return {str: "text ü", int: 7, float: 0.5, bool: True}[hint]


@pytest.mark.parametrize("payload", payloads(Event), ids=lambda p: p.__name__)
def test_events_round_trip(payload: type) -> None:
    for value in (sample(payload), payload()):
        event = Event(run_id="r", payload=value, time=1.25)
        assert codec.decode(Event, codec.encode(event)) == event
        assert codec.encode(event) == codec.encode(event)
        line = json.loads(codec.to_json_line(event, 3))
        assert (line["sequence"], line["type"], line["run_id"]) == (3, payload.__name__, "r")


@pytest.mark.parametrize("payload", payloads(Job), ids=lambda p: p.__name__)
def test_jobs_round_trip(payload: type) -> None:
    job = Job(job_id="j", run_id="r", payload=sample(payload))
    assert codec.decode(Job, codec.encode(job)) == job


def test_item_scores_are_single_precision_on_the_wire() -> None:
    event = Event(run_id="r", payload=messages.CandidateEvaluated(scores=(TaskScore(item_scores=(0.1, 1.0)),)))
    back = codec.decode(Event, codec.encode(event)).payload
    assert isinstance(back, messages.CandidateEvaluated)
    assert back.scores[0].item_scores == pytest.approx((0.1, 1.0), abs=1e-7)


@pytest.mark.parametrize("data", [b"\xff\xff", b"", b"\x0a\x01r"])
def test_other_bytes(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="Event"):
        codec.decode(Event, data)
