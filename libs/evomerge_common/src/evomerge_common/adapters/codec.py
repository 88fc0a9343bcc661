"""Values of `domain.messages` ↔ protobuf, field by field: the .proto files stay the only definition of the wire."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from evomerge.v1 import events_pb2, jobs_pb2, types_pb2
from evomerge_common.domain import messages
from evomerge_common.errors import InvalidInput

T = TypeVar("T")
_MODULES = (types_pb2, jobs_pb2, events_pb2)


def message_class(name: str) -> type[Message]:
    """Returns the generated class of that name.

    Raises:
        KeyError: no .proto defines it.

    """
    for module in _MODULES:
        if hasattr(module, name):
            found: type[Message] = getattr(module, name)
            return found
    raise KeyError(name)


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def to_proto(value: Any) -> Any:
    """Makes the protobuf message of the same name with the same fields."""
    kind: Any = type(value)
    message = message_class(kind.__name__)()
    for name in _names(kind):
        item = getattr(value, name)
        if name == "payload":
            field = next(
                f.name
                for f in message.DESCRIPTOR.oneofs_by_name["payload"].fields
                if f.message_type is not None and f.message_type.name == type(item).__name__
            )
        else:
            field = name
        if isinstance(item, tuple):
            getattr(message, field).extend([to_proto(i) if dataclasses.is_dataclass(i) else i for i in item])
        elif dataclasses.is_dataclass(item):
            getattr(message, field).CopyFrom(to_proto(item))
        else:
            setattr(message, field, item)
    return message


def from_proto(message: Message) -> Any:
    """Makes the value of the same name with the same fields."""
    kind = getattr(messages, type(message).__name__)
    fields: dict[str, Any] = {}
    for name in _names(kind):
        if name == "payload":
            chosen = message.WhichOneof("payload")
            if chosen is None:
                raise InvalidInput(f"a {message.DESCRIPTOR.name} without a payload that this version knows")
            fields[name] = from_proto(getattr(message, chosen))
            continue
        item = getattr(message, name)
        descriptor = message.DESCRIPTOR.fields_by_name[name]
        if descriptor.is_repeated:
            fields[name] = tuple(from_proto(i) if isinstance(i, Message) else i for i in item)
        else:
            fields[name] = from_proto(item) if isinstance(item, Message) else item
    return kind(**fields)


def encode(value: Any) -> bytes:
    """Writes an Event or a Job as protobuf bytes."""
    data: bytes = to_proto(value).SerializeToString(deterministic=True)
    return data


def decode(kind: type[T], data: bytes) -> T:
    """Reads what `encode` wrote.

    Raises:
        InvalidInput: other bytes.

    """
    message = message_class(kind.__name__)()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise InvalidInput(f"not a {kind.__name__}: {error}") from error
    value: T = from_proto(message)
    return value


def to_json_line(event: messages.Event, sequence: int) -> str:
    """Writes one line of events.jsonl: {"sequence", "type", "run_id", "time", then the payload's own fields}.

    A result also has "worker" and "began".
    """
    payload = json_format.MessageToDict(to_proto(event.payload), preserving_proto_field_name=True)
    whole = {"sequence": sequence, "type": event.type, "run_id": event.run_id, "time": event.time}
    if event.worker:
        whole |= {"worker": event.worker, "began": event.began}
    whole |= payload
    return json.dumps(whole, ensure_ascii=False)


def from_json_line(line: str) -> tuple[int, messages.Event]:
    """Reads one line of events.jsonl as (sequence, event).

    Raises:
        InvalidInput: it is no such line.

    """
    try:
        data = json.loads(line)
        kind, sequence = data.pop("type"), int(data.pop("sequence"))
        run_id, time = data.pop("run_id"), float(data.pop("time"))
        worker, began = str(data.pop("worker", "")), float(data.pop("began", 0.0))
        payload = json_format.ParseDict(data, message_class(kind)(), ignore_unknown_fields=True)
    except (ValueError, KeyError, TypeError, AttributeError, json_format.ParseError) as error:
        raise InvalidInput(f"not a line of an event log: {error}") from error
    return sequence, messages.Event(run_id=run_id, payload=from_proto(payload), time=time, worker=worker, began=began)
