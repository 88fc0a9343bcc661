from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from evomerge_common.runtime.logging import active_logging, setup_logging
from evomerge_common.runtime.settings import Settings


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    yield
    root.handlers, level = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("merger", Settings(log_format="json"))
    log = structlog.get_logger("evomerge.test")
    with structlog.contextvars.bound_contextvars(job_id="j"):
        log.info("job done", seconds=1.5)
    log.debug("not shown")
    logging.getLogger("some.library").warning("it says %s", "so")
    try:
        raise ValueError("bug")
    except ValueError:
        log.exception("failed")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["job done", "it says so", "failed"]
    first = lines[0]
    assert (first["service"], first["level"], first["job_id"], first["seconds"]) == ("merger", "info", "j", 1.5)
    assert first["timestamp"].endswith("Z")
    assert "ValueError: bug" in lines[2]["exception"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_are_not_printed(capsys: pytest.CaptureFixture[str], form: str) -> None:
    setup_logging("merger", Settings(log_format=form, token="hunter2", nats_password="hunter3"))
    log = structlog.get_logger("evomerge.test")
    log.warning("x", token="hunter2", nats_password="hunter3", Authorization="Bearer hunter2", tokens=17)
    settings = active_logging()
    log.warning("settings", settings=settings)
    out = capsys.readouterr().err
    assert "hunter" not in out
    assert "17" in out
