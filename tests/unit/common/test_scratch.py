"""Folders that live as long as the process that asked for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from evomerge_common.runtime.scratch import drop, scratch_folder

ASK = (
    "from evomerge_common.runtime.scratch import scratch_folder; print(scratch_folder('em-test-'), flush=True); {then}"
)


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_dropped_or_ended_it_is_gone() -> None:
    folder = scratch_folder("em-test-")
    (folder / "file").write_text("x")
    drop(folder)
    drop(folder)
    assert not folder.exists()
    told = subprocess.run([sys.executable, "-c", ASK.format(then="")], capture_output=True, text=True, check=True)
    assert told.stdout.strip()
    assert not Path(told.stdout.strip()).exists()


def test_what_a_kill_left_goes_with_the_next_and_what_is_in_use_stays() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ASK.format(then="input()")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        os.utime(folder, (0, 0))
        drop(scratch_folder("em-test-"))
        assert folder.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert folder.exists()
        drop(scratch_folder("em-test-"))
        assert not folder.exists()


def test_a_link_of_that_name_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    link = tmp_path / "em-test-link"
    link.symlink_to(kept)
    os.utime(link, (0, 0), follow_symlinks=False)
    drop(scratch_folder("em-test-"))
    assert kept.exists()
    assert link.is_symlink()
