"""Values of `domain.messages` ↔ protobuf, field by field: the .proto files stay the only definition of the wire."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from evomerge.v1 import events_pb2, jobs_pb2, types_pb2
from evomerge_common.domain import messages
from evomerge_common.errors import InvalidInput

T = TypeVar("T")
_MODULES = (types_pb2, jobs_pb2, events_pb2)


@functools.cache
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


def to_proto(value: Any) -> Any:
    """Makes the protobuf message of the same name with the same fields."""
    return _writer(type(value).__name__)(value)


def from_proto(message: Message) -> Any:
    """Makes the value of the same name with the same fields.

    Raises:
        InvalidInput: a payload that this version does not know.

    """
    return _reader(type(message).__name__)(message)


@functools.cache
def _writer(kind: str) -> Callable[[Any], Message]:
    """Looks at the fields of the class of that name once; what is returned turns its values into messages."""
    made_by = message_class(kind)
    names = tuple(field.name for field in dataclasses.fields(getattr(messages, kind)))
    payloads = {
        one.message_type.name: one.name for one in _payloads(made_by.DESCRIPTOR) if one.message_type is not None
    }

    def write(value: Any) -> Message:
        message = made_by()
        for name in names:
            item = getattr(value, name)
            if isinstance(item, tuple):
                getattr(message, name).extend([to_proto(i) if dataclasses.is_dataclass(i) else i for i in item])
            elif dataclasses.is_dataclass(item):
                field = payloads[type(item).__name__] if name == "payload" else name
                getattr(message, field).CopyFrom(to_proto(item))
            else:
                setattr(message, name, item)
        return message

    return write


@functools.cache
def _reader(kind: str) -> Callable[[Any], Any]:
    """Looks at the fields of the messages of that name once; what is returned makes values of such messages.

    The fields of a value are set together: the constructor of a frozen class would set them one by one.
    """
    descriptor: Any = message_class(kind).DESCRIPTOR
    its_class: Any = getattr(messages, kind)
    own = [descriptor.fields_by_name[one.name] for one in dataclasses.fields(its_class) if one.name != "payload"]
    plain = tuple(its.name for its in own if not its.is_repeated and its.message_type is None)
    one_each = [(its.name, _nested_reader(its)) for its in own if not its.is_repeated and its.message_type]
    lists = [(its.name, _nested_reader(its)) for its in own if its.is_repeated]
    payloads = {its.name: _nested_reader(its) for its in _payloads(descriptor)}
    values = _getter(plain)

    def read(message: Any) -> Any:
        fields = dict(zip(plain, values(message), strict=True))
        for name, reader in one_each:
            fields[name] = reader(getattr(message, name))
        for name, reader in lists:
            items = getattr(message, name)[:]  # several times as fast as to iterate over what holds them
            fields[name] = tuple(items if reader is None else map(reader, items))
        if payloads:
            chosen = message.WhichOneof("payload")
            if chosen is None:
                raise InvalidInput(f"a {kind} without a payload that this version knows")
            fields["payload"] = payloads[chosen](getattr(message, chosen))
        made = object.__new__(its_class)
        made.__dict__.update(fields)
        return made

    return read


def _nested_reader(field: Any) -> Any:
    """Returns what reads a field's messages; None where it holds plain values."""
    return _reader(field.message_type.name) if field.message_type else None


def _payloads(descriptor: Any) -> Sequence[Any]:
    """Lists the fields that a message may carry as its payload; none where it has no payload."""
    oneof = descriptor.oneofs_by_name.get("payload")
    return oneof.fields if oneof else ()


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Returns what reads these attributes of an object, all at once."""
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


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

    A result also has "worker" and "began"; the run's start has "began".
    """
    payload = json_format.MessageToDict(to_proto(event.payload), preserving_proto_field_name=True)
    whole = {"sequence": sequence, "type": event.type, "run_id": event.run_id, "time": event.time}
    if event.worker:
        whole["worker"] = event.worker
    if event.worker or event.began:
        whole["began"] = event.began
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
