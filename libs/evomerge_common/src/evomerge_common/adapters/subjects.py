"""Names on the wire: streams, subjects, buckets."""

from __future__ import annotations

import re

from evomerge_common.domain.messages import JOB_KINDS, Event
from evomerge_common.errors import InvalidInput, did_you_mean

WORK, EVENTS, DLQ = "WORK", "EVENTS", "DLQ"
KINDS = tuple(JOB_KINDS.values())
BUCKETS = ("runs", "scores", "results", "models")
DEDUPE_WINDOW = 120.0
"""Seconds in which the same message id is stored once."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
_KEY = re.compile(r"[A-Za-z0-9_=/-]+(\.[A-Za-z0-9_=/-]+)*")


def work_subject(kind: str) -> str:
    """Returns the subject of a kind of job.

    Raises:
        InvalidInput: no such kind.

    """
    if kind not in KINDS:
        raise InvalidInput(f"unknown kind of job {kind!r}; {did_you_mean(kind, KINDS)}")
    return f"evomerge.work.{kind}"


def event_subject(event: Event) -> str:
    """Returns the subject of an event: results and decisions apart, since decisions alone are fenced."""
    side = "result" if event.is_result else "decision"
    return f"evomerge.event.{run_token(event.run_id)}.{side}.{event.type}"


def run_filter(run_id: str) -> str:
    """Returns the subjects of one run's events ("*": of all runs)."""
    return "evomerge.event.>" if run_id == "*" else f"evomerge.event.{run_token(run_id)}.>"


def run_token(run_id: str) -> str:
    """Checks that a run id is one token of a subject, and returns it.

    Raises:
        InvalidInput: it is not.

    """
    if not _TOKEN.fullmatch(run_id):
        raise InvalidInput(f"run id {run_id!r}: letters, digits, - and _ only, 128 at most")
    return run_id


def check_key(bucket: str, key: str) -> None:
    """Refuses a bucket or key that a store could not hold.

    Raises:
        InvalidInput: unknown bucket, or a key with other than letters, digits and -_=/. in it.

    """
    if bucket not in BUCKETS:
        raise InvalidInput(f"unknown bucket {bucket!r}; {did_you_mean(bucket, BUCKETS)}")
    if not _KEY.fullmatch(key):
        raise InvalidInput(f"key {key!r}: letters, digits and -_=/. only")
