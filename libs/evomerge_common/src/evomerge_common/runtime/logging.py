"""Logs: structlog on stderr, for people or as JSON lines. Values of keys that name a secret are never printed."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog

from evomerge_common.domain.messages import DownloadJob, Job
from evomerge_common.runtime.log_file import SharedLogHandler
from evomerge_common.runtime.settings import Settings

_SECRET_WORDS = ("password", "token", "secret", "authorization", "credential")
_NOT_SECRET = ("tokens", "tokenizer", "token_count", "max_new_tokens")
SHORT = 12
_active: dict[str, tuple[str, Settings]] = {}


def setup_logging(service: str, settings: Settings) -> None:
    """Sends structlog and the standard library's loggers to stderr."""
    _active["now"] = (service, settings)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _service_name(service),
        hide_secrets,
    ]
    if settings.log_format == "json":
        final: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        traceback = structlog.dev.plain_traceback
        final = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=traceback)]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if settings.log_file:
        handler = SharedLogHandler(Path(settings.log_file).expanduser(), settings.log_size)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for noisy in ("asyncio", "grpc", "nats", "urllib3", "httpx", "filelock"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))


def short(digest: str) -> str:
    """Returns the digits of a digest that logs show: enough to find a candidate, or a model, by."""
    return digest.removeprefix("sha256:")[:SHORT]


def words_of(job: Job, attempt: int) -> dict[str, Any]:
    """Returns what every line says that is written while a job is in work: its run, id, attempt, and what it is of."""
    payload = job.payload
    if isinstance(payload, DownloadJob):
        of = {"model": payload.reference}
    else:
        of = {"candidate": short(payload.recipe_digest)}
    return {"run_id": job.run_id, **of, "job_id": job.job_id, "attempt": attempt}


def active_logging() -> tuple[str, Settings] | None:
    """Returns what `setup_logging` was called with: a child process logs the same way."""
    return _active.get("now")


def hide_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replaces the value of every key that names a secret."""
    for key in event:
        low = key.lower()
        if low not in _NOT_SECRET and any(word in low for word in _SECRET_WORDS):
            event[key] = "***"
    return event


def _service_name(service: str) -> Any:
    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("service", service)
        return event

    return add
