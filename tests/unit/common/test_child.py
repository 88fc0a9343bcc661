from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from evomerge_common.errors import DeadlineExceeded, RecipeError, WorkerCrashed
from evomerge_common.runtime.child import ChildProcess
from evomerge_common.runtime.fork_server import ADDRESS as FORK_SERVER
from evomerge_common.runtime.fork_server import start as start_fork_server
from helpers import child_functions as functions
from helpers.support import assert_eventually, python_process


@pytest.fixture
async def child() -> AsyncIterator[ChildProcess]:
    process = ChildProcess(initializer=functions.initialise, initargs=(10,))
    yield process
    process.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def test_state_lives_from_call_to_call(child: ChildProcess) -> None:
    assert child.pid is None  # started at the first call
    assert await asyncio.gather(*(child.call(functions.add, i) for i in range(4))) == [10, 11, 12, 13]
    assert await child.call(functions.calls) == 4
    assert await child.call(functions.pid) == child.pid != os.getpid()
    assert len(await child.call(functions.big, 5_000_000)) == 5_000_000


async def test_it_can_start_ahead_of_the_first_call(child: ChildProcess) -> None:
    child.start()
    pid = child.pid
    child.start()
    assert pid is not None
    assert await child.call(functions.pid) == pid


async def test_the_loop_stays_free(child: ChildProcess) -> None:
    call = asyncio.create_task(child.call(functions.sleep, 0.5))
    ticks = 0
    while not call.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 10


async def test_errors_come_through(child: ChildProcess) -> None:
    with pytest.raises(RecipeError, match=r"r.yaml:3: slices\[0\].method: unknown method") as caught:
        await child.call(functions.fail, "ours")
    assert (caught.value.path, caught.value.line) == (("slices", 0, "method"), 3)
    with pytest.raises(KeyError, match="bug") as bug:
        await child.call(functions.fail, "bug")
    assert "child_functions.py" in bug.value.__notes__[0]
    with pytest.raises(RuntimeError, match="Awkward: ab"):
        await child.call(functions.fail, "awkward")
    with pytest.raises(RuntimeError, match="cannot send"):
        await child.call(functions.unpicklable)
    with pytest.raises(Exception, match="pickle"):
        await child.call(lambda: None)
    assert await child.call(functions.add, 1) == 11


async def test_a_crash_is_typed_and_the_next_call_has_a_new_process(child: ChildProcess) -> None:
    with pytest.raises(WorkerCrashed, match=r"died in die: killed by SIGKILL \(out of memory\?\)"):
        await child.call(functions.die)
    with pytest.raises(WorkerCrashed, match="exit code 3"):
        await child.call(functions.leave)
    assert await child.call(functions.add, 5) == 15
    assert await child.call(functions.calls) == 1


async def test_a_timeout_kills(child: ChildProcess, tmp_path: Path) -> None:
    await child.call(functions.add, 0)
    with pytest.raises(DeadlineExceeded, match=r"touch_later took longer than 0.2 seconds"):
        await child.call(functions.touch_later, tmp_path / "late", 0.6, timeout=0.2)
    await asyncio.sleep(0.6)
    assert not (tmp_path / "late").exists()
    assert await child.call(functions.add, 5) == 15


async def test_a_cancelled_caller_takes_the_work_with_it(child: ChildProcess) -> None:
    pid = await child.call(functions.pid)
    call = asyncio.create_task(child.call(functions.sleep, 60))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await assert_eventually(lambda: not alive(pid))
    assert await child.call(functions.add, 5) == 15


async def test_signals_are_the_parents_business(child: ChildProcess) -> None:
    assert await child.call(functions.interrupted) == "still here"


async def test_an_initialiser_that_fails_fails_every_call() -> None:
    child = ChildProcess(initializer=functions.broken_initialise)
    for _ in range(2):
        with pytest.raises(RecipeError, match="bad start"):
            await child.call(functions.pid)
    child.close()


async def test_close_ends_a_call_under_way() -> None:
    child = ChildProcess()
    call = asyncio.create_task(child.call(functions.sleep, 60))
    await assert_eventually(lambda: child.pid is not None)
    await asyncio.to_thread(child.close)
    with pytest.raises(WorkerCrashed):
        await call
    with pytest.raises(WorkerCrashed, match="closed"):
        await child.call(functions.pid)


def parent_of_child(folder: Path) -> Path:
    """A module that starts a child, prints its pid, and waits for it."""
    code = f"""if True:
        import asyncio, sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from helpers import child_functions
        from evomerge_common.runtime.child import ChildProcess

        async def main():
            child = ChildProcess()
            print(await child.call(child_functions.pid), flush=True)
            await child.call(child_functions.sleep, 60)

        if __name__ == "__main__":
            asyncio.run(main())
    """
    (folder / "parent_of_child.py").write_text(code)
    return folder


async def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """kill -9 of the service leaves nothing that computes."""
    with python_process("parent_of_child", cwd=parent_of_child(tmp_path)) as parent:
        await assert_eventually(lambda: parent.output.read_text().endswith("\n"), 30)
        pid = int(parent.output.read_text())
        assert alive(pid)
        started = time.monotonic()
        parent.kill()
        await assert_eventually(lambda: not alive(pid))
        assert time.monotonic() - started < 3


@pytest.fixture
def fork_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A server that has imported the functions; children of this process come from it."""
    started = start_fork_server(["helpers.child_functions"])
    if started is None:
        pytest.skip("fork servers are for Linux")
    process, name = started
    monkeypatch.setenv(FORK_SERVER, name)
    monkeypatch.setenv("EVOMERGE_TEST_WORD", "of this moment")
    yield process
    process.kill()
    process.wait()


async def test_a_fork_server_forks_what_would_be_spawned(fork_server: subprocess.Popen[bytes]) -> None:
    child = ChildProcess(initializer=functions.initialise, initargs=(10,))
    try:
        assert await child.call(functions.add, 1) == 11
        assert await child.call(functions.parent) == fork_server.pid
        assert await child.call(functions.pid) == child.pid
        assert await child.call(os.getenv, "EVOMERGE_TEST_WORD") == "of this moment"
        assert await child.call(os.getcwd) == os.getcwd()
        with pytest.raises(WorkerCrashed, match="killed by SIGKILL"):
            await child.call(functions.die)
        with pytest.raises(DeadlineExceeded):
            await child.call(functions.sleep, 60, timeout=0.2)
        assert await child.call(functions.add, 2) == 12  # a new one, with nothing of the one before
        assert await child.call(functions.calls) == 1
    finally:
        pid = child.pid
        child.close()
    assert pid is not None
    await assert_eventually(lambda: not alive(pid))


async def test_who_is_forked_ends_with_the_fork_server_and_the_next_is_spawned(
    fork_server: subprocess.Popen[bytes],
) -> None:
    child = ChildProcess()
    try:
        pid = await child.call(functions.pid)
        fork_server.kill()
        await assert_eventually(lambda: not alive(pid), 3)
        assert await child.call(functions.parent) == os.getpid()
    finally:
        child.close()


async def test_who_is_forked_ends_with_who_asked(fork_server: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """kill -9 of the service leaves nothing that computes, in native code or not, though the server lives on."""
    with python_process("parent_of_child", cwd=parent_of_child(tmp_path)) as parent:
        await assert_eventually(lambda: parent.output.read_text().endswith("\n"), 30)
        pid = int(parent.output.read_text())
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == str(fork_server.pid)
        started = time.monotonic()
        parent.kill()
        await assert_eventually(lambda: not alive(pid))
        assert time.monotonic() - started < 3
    assert fork_server.poll() is None
