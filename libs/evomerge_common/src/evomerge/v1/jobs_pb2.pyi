from evomerge.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Job(_message.Message):
    __slots__ = ("job_id", "run_id", "attempt", "download", "merge", "evaluate", "export")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_FIELD_NUMBER: _ClassVar[int]
    MERGE_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    run_id: str
    attempt: int
    download: DownloadJob
    merge: MergeJob
    evaluate: EvaluateJob
    export: ExportJob
    def __init__(self, job_id: _Optional[str] = ..., run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., download: _Optional[_Union[DownloadJob, _Mapping]] = ..., merge: _Optional[_Union[MergeJob, _Mapping]] = ..., evaluate: _Optional[_Union[EvaluateJob, _Mapping]] = ..., export: _Optional[_Union[ExportJob, _Mapping]] = ...) -> None: ...

class DownloadJob(_message.Message):
    __slots__ = ("reference", "base", "together", "accept_licence_conflict")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_LICENCE_CONFLICT_FIELD_NUMBER: _ClassVar[int]
    reference: str
    base: str
    together: _containers.RepeatedScalarFieldContainer[str]
    accept_licence_conflict: bool
    def __init__(self, reference: _Optional[str] = ..., base: _Optional[str] = ..., together: _Optional[_Iterable[str]] = ..., accept_licence_conflict: _Optional[bool] = ...) -> None: ...

class MergeJob(_message.Message):
    __slots__ = ("recipe_json", "recipe_digest", "sources")
    RECIPE_JSON_FIELD_NUMBER: _ClassVar[int]
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    recipe_json: str
    recipe_digest: str
    sources: _containers.RepeatedCompositeFieldContainer[_types_pb2.Model]
    def __init__(self, recipe_json: _Optional[str] = ..., recipe_digest: _Optional[str] = ..., sources: _Optional[_Iterable[_Union[_types_pb2.Model, _Mapping]]] = ...) -> None: ...

class EvaluateJob(_message.Message):
    __slots__ = ("recipe_json", "recipe_digest", "sources", "artifact_uri", "suite_uri", "suite_digest", "split", "threads", "items", "rung", "dtype", "graded")
    RECIPE_JSON_FIELD_NUMBER: _ClassVar[int]
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_URI_FIELD_NUMBER: _ClassVar[int]
    SUITE_URI_FIELD_NUMBER: _ClassVar[int]
    SUITE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    GRADED_FIELD_NUMBER: _ClassVar[int]
    recipe_json: str
    recipe_digest: str
    sources: _containers.RepeatedCompositeFieldContainer[_types_pb2.Model]
    artifact_uri: str
    suite_uri: str
    suite_digest: str
    split: str
    threads: int
    items: _containers.RepeatedCompositeFieldContainer[_types_pb2.TaskItems]
    rung: int
    dtype: str
    graded: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, recipe_json: _Optional[str] = ..., recipe_digest: _Optional[str] = ..., sources: _Optional[_Iterable[_Union[_types_pb2.Model, _Mapping]]] = ..., artifact_uri: _Optional[str] = ..., suite_uri: _Optional[str] = ..., suite_digest: _Optional[str] = ..., split: _Optional[str] = ..., threads: _Optional[int] = ..., items: _Optional[_Iterable[_Union[_types_pb2.TaskItems, _Mapping]]] = ..., rung: _Optional[int] = ..., dtype: _Optional[str] = ..., graded: _Optional[_Iterable[str]] = ...) -> None: ...

class ExportJob(_message.Message):
    __slots__ = ("recipe_json", "recipe_digest", "sources", "format", "destination", "card", "gguf_type")
    RECIPE_JSON_FIELD_NUMBER: _ClassVar[int]
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    GGUF_TYPE_FIELD_NUMBER: _ClassVar[int]
    recipe_json: str
    recipe_digest: str
    sources: _containers.RepeatedCompositeFieldContainer[_types_pb2.Model]
    format: str
    destination: str
    card: str
    gguf_type: str
    def __init__(self, recipe_json: _Optional[str] = ..., recipe_digest: _Optional[str] = ..., sources: _Optional[_Iterable[_Union[_types_pb2.Model, _Mapping]]] = ..., format: _Optional[str] = ..., destination: _Optional[str] = ..., card: _Optional[str] = ..., gguf_type: _Optional[str] = ...) -> None: ...
