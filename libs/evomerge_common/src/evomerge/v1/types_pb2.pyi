from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Model(_message.Message):
    __slots__ = ("reference", "digest", "uri", "commit", "architecture", "num_layers", "parameters", "bytes", "base", "layers", "fixed_scale", "licence")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    FIXED_SCALE_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    digest: str
    uri: str
    commit: str
    architecture: str
    num_layers: int
    parameters: int
    bytes: int
    base: str
    layers: str
    fixed_scale: bool
    licence: str
    def __init__(self, reference: _Optional[str] = ..., digest: _Optional[str] = ..., uri: _Optional[str] = ..., commit: _Optional[str] = ..., architecture: _Optional[str] = ..., num_layers: _Optional[int] = ..., parameters: _Optional[int] = ..., bytes: _Optional[int] = ..., base: _Optional[str] = ..., layers: _Optional[str] = ..., fixed_scale: _Optional[bool] = ..., licence: _Optional[str] = ...) -> None: ...

class TaskScore(_message.Message):
    __slots__ = ("task", "score", "metric", "metric_value", "item_scores", "positions", "credit", "answers")
    TASK_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    METRIC_VALUE_FIELD_NUMBER: _ClassVar[int]
    ITEM_SCORES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    task: str
    score: float
    metric: str
    metric_value: float
    item_scores: _containers.RepeatedScalarFieldContainer[float]
    positions: _containers.RepeatedScalarFieldContainer[int]
    credit: float
    answers: _containers.RepeatedCompositeFieldContainer[Answer]
    def __init__(self, task: _Optional[str] = ..., score: _Optional[float] = ..., metric: _Optional[str] = ..., metric_value: _Optional[float] = ..., item_scores: _Optional[_Iterable[float]] = ..., positions: _Optional[_Iterable[int]] = ..., credit: _Optional[float] = ..., answers: _Optional[_Iterable[_Union[Answer, _Mapping]]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("position", "text")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    position: int
    text: str
    def __init__(self, position: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class TaskItems(_message.Message):
    __slots__ = ("task", "positions")
    TASK_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    task: str
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, task: _Optional[str] = ..., positions: _Optional[_Iterable[int]] = ...) -> None: ...

class ErrorInfo(_message.Message):
    __slots__ = ("type", "message")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    type: str
    message: str
    def __init__(self, type: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
