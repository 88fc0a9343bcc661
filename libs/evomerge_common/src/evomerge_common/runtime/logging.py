"""Logs: structlog on stderr, for people or as JSON lines. Values of keys that name a secret are never printed."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from evomerge_common.runtime.settings import Settings

_SECRET_WORDS = ("password", "token", "secret", "authorization", "credential")
_NOT_SECRET = ("tokens", "tokenizer", "token_count", "max_new_tokens")
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
    handler = logging.StreamHandler(sys.stderr)
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
