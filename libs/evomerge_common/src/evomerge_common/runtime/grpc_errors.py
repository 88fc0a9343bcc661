"""The exception tree ↔ gRPC status codes, with google.rpc details that grpcurl prints."""

from __future__ import annotations

import itertools
from typing import Any

import grpc

from evomerge_common.errors import (
    BackPressure,
    DeadlineExceeded,
    EvoMergeException,
    Fenced,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    SpecError,
    Unavailable,
    WorkFailed,
    error_from_info,
)

DOMAIN = "evomerge"
MAX_MESSAGE = 2000
"""Bytes of an error's message in the trailers, of which gRPC reads 8 KB in all, details included."""
_CODES: tuple[tuple[type[EvoMergeException], grpc.StatusCode], ...] = (
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (Fenced, grpc.StatusCode.ABORTED),
    (BackPressure, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (ResourceExhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
)


def status_code(error: BaseException) -> grpc.StatusCode:
    """Returns the code that tells of an exception; INTERNAL for a bug or for work that failed."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def to_status(error: BaseException) -> Any:
    """Makes a google.rpc status of an exception: ErrorInfo (class name), BadRequest with the place in a document."""
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2, status_pb2
    from grpc_status import rpc_status

    ours = isinstance(error, EvoMergeException)
    message = str(error) if ours else f"bug: {type(error).__name__}: {error}; the service's log has the traceback"
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=DOMAIN)]
    if isinstance(error, SpecError):
        description = _cut(error.problem, MAX_MESSAGE // 2)
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.key, description=description)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    packed = [any_pb2.Any() for _ in details]
    for box, detail in zip(packed, details, strict=True):
        box.Pack(detail)
    return rpc_status.to_status(
        status_pb2.Status(code=status_code(error).value[0], message=_cut(message, MAX_MESSAGE), details=packed)
    )


def _cut(text: str, most: int) -> str:
    """As much of a text as takes `most` bytes in a trailer, where what is not ASCII takes three times its bytes."""
    text = text.encode("utf-8", "replace").decode()
    lengths = itertools.accumulate(1 if " " <= one <= "~" and one != "%" else 3 * len(one.encode()) for one in text)
    return text[: sum(1 for _ in itertools.takewhile(lambda length: length <= most, lengths))]


def error_from_rpc(error: grpc.RpcError) -> EvoMergeException:
    """Turns what a client catches into the exception that the server raised (or the nearest of the tree)."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    code, text = error.code(), error.details() or ""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, NotImplementedError):
        status = None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return error_from_info(info.reason, text)
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"the service does not answer: {text}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"no answer in time: {text}")
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFound(text)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceExhausted(text)
    if code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        return InvalidInput(text)
    return WorkFailed(f"{code.name if code else 'UNKNOWN'}: {text}")
