"""Files and folders that are whole or not there; locks that end with their holder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge_common.runtime.files import lock_file, lock_folder, locked, new_folder, replacing, write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    write_atomically(path, "über")
    assert path.read_text("utf-8") == "über"
    write_atomically(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(IsADirectoryError), replacing(path) as fresh:
        fresh.write_text("ne" + tmp_path.read_text())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "model"
    with pytest.raises(IsADirectoryError), new_folder(path) as fresh:
        (fresh / "x").write_text("x" + tmp_path.read_text())
    assert list(tmp_path.iterdir()) == []
    with new_folder(path) as fresh:
        (fresh / "x").write_text("x")
        assert not path.exists()
    assert [one.name for one in path.parent.iterdir()] == ["model"]
    assert (path / "x").read_text() == "x"


def test_what_a_killed_process_left_of_a_folder_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from evomerge_common.runtime.files import new_folder\n"
        "with new_folder(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "model"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    with new_folder(path) as fresh, new_folder(path.with_name("other")):
        assert {one.name for one in tmp_path.iterdir()} > {fresh.name}
    assert {one.name for one in tmp_path.iterdir()} == {"model", "other"}


def test_a_lock_keeps_others_out_until_its_handle_is_closed(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(BlockingIOError):
        lock_file(tmp_path / "lock", wait=False)
    os.close(lock_file(tmp_path / "lock", wait=False))
    handle = lock_folder(tmp_path)
    with pytest.raises(BlockingIOError):
        lock_folder(tmp_path, wait=False)
    os.close(handle)
    os.close(lock_folder(tmp_path, wait=False))
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError):
        lock_folder(tmp_path / "link")
