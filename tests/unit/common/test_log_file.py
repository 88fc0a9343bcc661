"""A log file that several processes write and that stays short: no line is lost, also where a writer is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from helpers.support import assert_eventually_sync

WRITER = """
import sys
from evomerge_common.runtime.logging import setup_logging
from evomerge_common.runtime.settings import Settings
import structlog
setup_logging("writer", Settings(log_file=sys.argv[1], log_size=int(sys.argv[2])))
log = structlog.get_logger()
for number in range(int(sys.argv[4])):
    log.info("said", line=f"<{sys.argv[3]}-{number}>")
sys.stderr.write("a library's own words\\n")
"""


def writer(log: Path, size: int, name: str, lines: int) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        command = [sys.executable, "-c", WRITER, str(log), str(size), name, str(lines)]
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def files(log: Path) -> list[Path]:
    return sorted(log.parent.glob(f"{log.name}*"))


def test_three_writers_of_one_file_lose_no_line(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "service.log"
    log.parent.mkdir()
    writers = [writer(log, 150_000, name, 1000) for name in "abc"]
    assert [one.wait(30) for one in writers] == [0, 0, 0]
    text = "".join(file.read_text() for file in files(log))
    assert sorted(re.findall(r"<[abc]-\d+>", text)) == sorted(f"<{name}-{i}>" for name in "abc" for i in range(1000))
    assert [file.name for file in files(log)] == ["service.log", "service.log.1", "service.log.2"]
    assert max(file.stat().st_size for file in files(log)) < 160_000
    assert text.count("a library's own words") == 3, "what does not go through logging goes into the file as well"


def test_the_files_together_stay_within_three_times_the_size_and_hold_the_newest(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    assert writer(log, 20_000, "a", 2000).wait(30) == 0
    assert [file.name for file in files(log)] == ["service.log", "service.log.1", "service.log.2"]
    assert sum(file.stat().st_size for file in files(log)) < 62_000
    numbers = [int(one) for file in reversed(files(log)) for one in re.findall(r"<a-(\d+)>", file.read_text())]
    assert numbers == list(range(numbers[0], 2000))


def test_a_killed_writer_has_written_what_it_said(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    process = writer(log, 20_000, "a", 10**9)
    assert_eventually_sync(lambda: log.with_name("service.log.2").exists())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    lines = [line for file in reversed(files(log)) for line in file.read_text().splitlines()]
    numbers = [int(re.findall(r"<a-(\d+)>", line)[0]) for line in lines]
    assert numbers == list(range(numbers[0], numbers[0] + len(lines))), "no line is missing, and none is cut"
