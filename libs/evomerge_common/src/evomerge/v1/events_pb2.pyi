from evomerge.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Event(_message.Message):
    __slots__ = ("run_id", "time", "worker", "began", "run_started", "candidate_proposed", "candidate_selected", "generation_completed", "champion_changed", "run_paused", "run_resumed", "run_cancelled", "run_failed", "run_finished", "search_ended", "candidate_raced", "run_continued", "task_graded", "model_ready", "candidate_merged", "candidate_evaluated", "candidate_failed", "artifact_exported", "job_postponed")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    BEGAN_FIELD_NUMBER: _ClassVar[int]
    RUN_STARTED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_PROPOSED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_SELECTED_FIELD_NUMBER: _ClassVar[int]
    GENERATION_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    CHAMPION_CHANGED_FIELD_NUMBER: _ClassVar[int]
    RUN_PAUSED_FIELD_NUMBER: _ClassVar[int]
    RUN_RESUMED_FIELD_NUMBER: _ClassVar[int]
    RUN_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    RUN_FAILED_FIELD_NUMBER: _ClassVar[int]
    RUN_FINISHED_FIELD_NUMBER: _ClassVar[int]
    SEARCH_ENDED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_RACED_FIELD_NUMBER: _ClassVar[int]
    RUN_CONTINUED_FIELD_NUMBER: _ClassVar[int]
    TASK_GRADED_FIELD_NUMBER: _ClassVar[int]
    MODEL_READY_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_MERGED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_EVALUATED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FAILED_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_EXPORTED_FIELD_NUMBER: _ClassVar[int]
    JOB_POSTPONED_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    time: float
    worker: str
    began: float
    run_started: RunStarted
    candidate_proposed: CandidateProposed
    candidate_selected: CandidateSelected
    generation_completed: GenerationCompleted
    champion_changed: ChampionChanged
    run_paused: RunPaused
    run_resumed: RunResumed
    run_cancelled: RunCancelled
    run_failed: RunFailed
    run_finished: RunFinished
    search_ended: SearchEnded
    candidate_raced: CandidateRaced
    run_continued: RunContinued
    task_graded: TaskGraded
    model_ready: ModelReady
    candidate_merged: CandidateMerged
    candidate_evaluated: CandidateEvaluated
    candidate_failed: CandidateFailed
    artifact_exported: ArtifactExported
    job_postponed: JobPostponed
    def __init__(self, run_id: _Optional[str] = ..., time: _Optional[float] = ..., worker: _Optional[str] = ..., began: _Optional[float] = ..., run_started: _Optional[_Union[RunStarted, _Mapping]] = ..., candidate_proposed: _Optional[_Union[CandidateProposed, _Mapping]] = ..., candidate_selected: _Optional[_Union[CandidateSelected, _Mapping]] = ..., generation_completed: _Optional[_Union[GenerationCompleted, _Mapping]] = ..., champion_changed: _Optional[_Union[ChampionChanged, _Mapping]] = ..., run_paused: _Optional[_Union[RunPaused, _Mapping]] = ..., run_resumed: _Optional[_Union[RunResumed, _Mapping]] = ..., run_cancelled: _Optional[_Union[RunCancelled, _Mapping]] = ..., run_failed: _Optional[_Union[RunFailed, _Mapping]] = ..., run_finished: _Optional[_Union[RunFinished, _Mapping]] = ..., search_ended: _Optional[_Union[SearchEnded, _Mapping]] = ..., candidate_raced: _Optional[_Union[CandidateRaced, _Mapping]] = ..., run_continued: _Optional[_Union[RunContinued, _Mapping]] = ..., task_graded: _Optional[_Union[TaskGraded, _Mapping]] = ..., model_ready: _Optional[_Union[ModelReady, _Mapping]] = ..., candidate_merged: _Optional[_Union[CandidateMerged, _Mapping]] = ..., candidate_evaluated: _Optional[_Union[CandidateEvaluated, _Mapping]] = ..., candidate_failed: _Optional[_Union[CandidateFailed, _Mapping]] = ..., artifact_exported: _Optional[_Union[ArtifactExported, _Mapping]] = ..., job_postponed: _Optional[_Union[JobPostponed, _Mapping]] = ...) -> None: ...

class RunStarted(_message.Message):
    __slots__ = ("spec_json", "request_id", "version", "suite_uri", "suite_digest", "has_holdout", "tasks", "earlier")
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SUITE_URI_FIELD_NUMBER: _ClassVar[int]
    SUITE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HAS_HOLDOUT_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    EARLIER_FIELD_NUMBER: _ClassVar[int]
    spec_json: str
    request_id: str
    version: str
    suite_uri: str
    suite_digest: str
    has_holdout: bool
    tasks: _containers.RepeatedCompositeFieldContainer[TaskShape]
    earlier: _containers.RepeatedCompositeFieldContainer[EarlierCandidate]
    def __init__(self, spec_json: _Optional[str] = ..., request_id: _Optional[str] = ..., version: _Optional[str] = ..., suite_uri: _Optional[str] = ..., suite_digest: _Optional[str] = ..., has_holdout: _Optional[bool] = ..., tasks: _Optional[_Iterable[_Union[TaskShape, _Mapping]]] = ..., earlier: _Optional[_Iterable[_Union[EarlierCandidate, _Mapping]]] = ...) -> None: ...

class EarlierCandidate(_message.Message):
    __slots__ = ("run_id", "recipe_digest", "genome_json", "fitness", "scores", "credits", "dtype")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENOME_JSON_FIELD_NUMBER: _ClassVar[int]
    FITNESS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    recipe_digest: str
    genome_json: str
    fitness: float
    scores: _containers.RepeatedScalarFieldContainer[float]
    credits: _containers.RepeatedScalarFieldContainer[float]
    dtype: str
    def __init__(self, run_id: _Optional[str] = ..., recipe_digest: _Optional[str] = ..., genome_json: _Optional[str] = ..., fitness: _Optional[float] = ..., scores: _Optional[_Iterable[float]] = ..., credits: _Optional[_Iterable[float]] = ..., dtype: _Optional[str] = ...) -> None: ...

class TaskShape(_message.Message):
    __slots__ = ("task", "weight", "items", "fitness")
    TASK_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    FITNESS_FIELD_NUMBER: _ClassVar[int]
    task: str
    weight: float
    items: int
    fitness: str
    def __init__(self, task: _Optional[str] = ..., weight: _Optional[float] = ..., items: _Optional[int] = ..., fitness: _Optional[str] = ...) -> None: ...

class TaskGraded(_message.Message):
    __slots__ = ("task", "reason")
    TASK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task: str
    reason: str
    def __init__(self, task: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CandidateProposed(_message.Message):
    __slots__ = ("index", "recipe_digest", "recipe_json", "genome_json", "operator", "parents", "generation")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RECIPE_JSON_FIELD_NUMBER: _ClassVar[int]
    GENOME_JSON_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    index: int
    recipe_digest: str
    recipe_json: str
    genome_json: str
    operator: str
    parents: _containers.RepeatedScalarFieldContainer[str]
    generation: int
    def __init__(self, index: _Optional[int] = ..., recipe_digest: _Optional[str] = ..., recipe_json: _Optional[str] = ..., genome_json: _Optional[str] = ..., operator: _Optional[str] = ..., parents: _Optional[_Iterable[str]] = ..., generation: _Optional[int] = ...) -> None: ...

class CandidateSelected(_message.Message):
    __slots__ = ("generation", "recipe_digests")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RECIPE_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    generation: int
    recipe_digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, generation: _Optional[int] = ..., recipe_digests: _Optional[_Iterable[str]] = ...) -> None: ...

class GenerationCompleted(_message.Message):
    __slots__ = ("generation", "evaluated", "best_fitness", "mean_fitness", "diversity")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    BEST_FITNESS_FIELD_NUMBER: _ClassVar[int]
    MEAN_FITNESS_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    generation: int
    evaluated: int
    best_fitness: float
    mean_fitness: float
    diversity: float
    def __init__(self, generation: _Optional[int] = ..., evaluated: _Optional[int] = ..., best_fitness: _Optional[float] = ..., mean_fitness: _Optional[float] = ..., diversity: _Optional[float] = ...) -> None: ...

class ChampionChanged(_message.Message):
    __slots__ = ("recipe_digest", "fitness", "index")
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FITNESS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    recipe_digest: str
    fitness: float
    index: int
    def __init__(self, recipe_digest: _Optional[str] = ..., fitness: _Optional[float] = ..., index: _Optional[int] = ...) -> None: ...

class CandidateRaced(_message.Message):
    __slots__ = ("recipe_digest", "index", "stopped", "rung", "items", "fitness", "low", "high", "scores", "against", "chance", "estimates")
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    FITNESS_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    CHANCE_FIELD_NUMBER: _ClassVar[int]
    ESTIMATES_FIELD_NUMBER: _ClassVar[int]
    recipe_digest: str
    index: int
    stopped: bool
    rung: int
    items: int
    fitness: float
    low: float
    high: float
    scores: _containers.RepeatedCompositeFieldContainer[_types_pb2.TaskScore]
    against: str
    chance: float
    estimates: _containers.RepeatedCompositeFieldContainer[RungEstimate]
    def __init__(self, recipe_digest: _Optional[str] = ..., index: _Optional[int] = ..., stopped: _Optional[bool] = ..., rung: _Optional[int] = ..., items: _Optional[int] = ..., fitness: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., scores: _Optional[_Iterable[_Union[_types_pb2.TaskScore, _Mapping]]] = ..., against: _Optional[str] = ..., chance: _Optional[float] = ..., estimates: _Optional[_Iterable[_Union[RungEstimate, _Mapping]]] = ...) -> None: ...

class RungEstimate(_message.Message):
    __slots__ = ("fitness", "low", "high")
    FITNESS_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    fitness: float
    low: float
    high: float
    def __init__(self, fitness: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class RunPaused(_message.Message):
    __slots__ = ("reason", "lack")
    REASON_FIELD_NUMBER: _ClassVar[int]
    LACK_FIELD_NUMBER: _ClassVar[int]
    reason: str
    lack: _types_pb2.ErrorInfo
    def __init__(self, reason: _Optional[str] = ..., lack: _Optional[_Union[_types_pb2.ErrorInfo, _Mapping]] = ...) -> None: ...

class RunResumed(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class RunContinued(_message.Message):
    __slots__ = ("spec_json",)
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    spec_json: str
    def __init__(self, spec_json: _Optional[str] = ...) -> None: ...

class RunCancelled(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class RunFailed(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: _types_pb2.ErrorInfo
    def __init__(self, error: _Optional[_Union[_types_pb2.ErrorInfo, _Mapping]] = ...) -> None: ...

class SearchEnded(_message.Message):
    __slots__ = ("champion_digest", "reason", "evaluated", "controls")
    CHAMPION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    champion_digest: str
    reason: str
    evaluated: int
    controls: _containers.RepeatedCompositeFieldContainer[Control]
    def __init__(self, champion_digest: _Optional[str] = ..., reason: _Optional[str] = ..., evaluated: _Optional[int] = ..., controls: _Optional[_Iterable[_Union[Control, _Mapping]]] = ...) -> None: ...

class Control(_message.Message):
    __slots__ = ("kind", "recipe_digest", "recipe_json")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RECIPE_JSON_FIELD_NUMBER: _ClassVar[int]
    kind: str
    recipe_digest: str
    recipe_json: str
    def __init__(self, kind: _Optional[str] = ..., recipe_digest: _Optional[str] = ..., recipe_json: _Optional[str] = ...) -> None: ...

class RunFinished(_message.Message):
    __slots__ = ("champion_digest", "reason", "fitness")
    CHAMPION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FITNESS_FIELD_NUMBER: _ClassVar[int]
    champion_digest: str
    reason: str
    fitness: float
    def __init__(self, champion_digest: _Optional[str] = ..., reason: _Optional[str] = ..., fitness: _Optional[float] = ...) -> None: ...

class ModelReady(_message.Message):
    __slots__ = ("job_id", "model", "seconds")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    model: _types_pb2.Model
    seconds: float
    def __init__(self, job_id: _Optional[str] = ..., model: _Optional[_Union[_types_pb2.Model, _Mapping]] = ..., seconds: _Optional[float] = ...) -> None: ...

class CandidateMerged(_message.Message):
    __slots__ = ("job_id", "recipe_digest", "uri", "bytes", "seconds", "notes")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    recipe_digest: str
    uri: str
    bytes: int
    seconds: float
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_id: _Optional[str] = ..., recipe_digest: _Optional[str] = ..., uri: _Optional[str] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class CandidateEvaluated(_message.Message):
    __slots__ = ("job_id", "recipe_digest", "suite_digest", "split", "fitness", "scores", "seconds", "device", "cached", "partial", "rung", "computed", "dtype")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SUITE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    FITNESS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    recipe_digest: str
    suite_digest: str
    split: str
    fitness: float
    scores: _containers.RepeatedCompositeFieldContainer[_types_pb2.TaskScore]
    seconds: float
    device: str
    cached: bool
    partial: bool
    rung: int
    computed: int
    dtype: str
    def __init__(self, job_id: _Optional[str] = ..., recipe_digest: _Optional[str] = ..., suite_digest: _Optional[str] = ..., split: _Optional[str] = ..., fitness: _Optional[float] = ..., scores: _Optional[_Iterable[_Union[_types_pb2.TaskScore, _Mapping]]] = ..., seconds: _Optional[float] = ..., device: _Optional[str] = ..., cached: _Optional[bool] = ..., partial: _Optional[bool] = ..., rung: _Optional[int] = ..., computed: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class CandidateFailed(_message.Message):
    __slots__ = ("job_id", "kind", "recipe_digest", "split", "reference", "error")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    kind: str
    recipe_digest: str
    split: str
    reference: str
    error: _types_pb2.ErrorInfo
    def __init__(self, job_id: _Optional[str] = ..., kind: _Optional[str] = ..., recipe_digest: _Optional[str] = ..., split: _Optional[str] = ..., reference: _Optional[str] = ..., error: _Optional[_Union[_types_pb2.ErrorInfo, _Mapping]] = ...) -> None: ...

class JobPostponed(_message.Message):
    __slots__ = ("job_id", "kind", "attempt", "error")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    kind: str
    attempt: int
    error: _types_pb2.ErrorInfo
    def __init__(self, job_id: _Optional[str] = ..., kind: _Optional[str] = ..., attempt: _Optional[int] = ..., error: _Optional[_Union[_types_pb2.ErrorInfo, _Mapping]] = ...) -> None: ...

class ArtifactExported(_message.Message):
    __slots__ = ("job_id", "recipe_digest", "format", "uri", "bytes", "seconds", "notes")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    recipe_digest: str
    format: str
    uri: str
    bytes: int
    seconds: float
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_id: _Optional[str] = ..., recipe_digest: _Optional[str] = ..., format: _Optional[str] = ..., uri: _Optional[str] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...
