"""The NATS adapters when the broker dies, refuses or is slow to come: a real nats-server, killed with SIGKILL."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.js import JetStreamContext

from evomerge_cli.stack.broker import Broker
from evomerge_common.adapters import nats_link
from evomerge_common.domain.messages import CandidateProposed, Event, ExportJob, Job, Model, ModelReady, RunStarted
from evomerge_common.errors import Fenced, InvalidInput, Unavailable
from evomerge_common.ports import Recorded
from evomerge_common.runtime.ports_factory import Ports, connect_ports
from evomerge_common.runtime.settings import Settings
from helpers.support import assert_eventually, download_job


def settings_for(broker: Broker, tmp_path: Path, **more: object) -> Settings:
    return Settings(nats_url=broker.url, artifact_store=str(tmp_path / "artifacts"), **more)  # type: ignore[arg-type]


def ready(job_id: str, run_id: str = "run") -> Event:
    return Event(run_id=run_id, payload=ModelReady(job_id=job_id, model=Model(reference="x" * 100)))


async def test_nothing_acknowledged_is_lost_and_everybody_goes_on(nats_server: Broker, tmp_path: Path) -> None:
    ports = await connect_ports(settings_for(nats_server, tmp_path, ack_wait=1.0))
    seen: list[Recorded] = []

    async def follow() -> None:
        async for recorded in ports.log.follow("run"):
            seen.append(recorded)

    following = asyncio.create_task(follow())
    decision = await ports.log.append_decision(Event(run_id="run", payload=RunStarted(spec_json="{}")), expected_last=0)
    await ports.queue.publish(download_job("job"))
    held = await ports.queue.fetch("download", 2.0)
    assert held is not None
    await ports.kv.create("runs", "run", b"1")
    await assert_eventually(lambda: len(seen) == 1)

    nats_server.kill()
    late = asyncio.create_task(ports.log.append_result(ready("a"), message_id="a"))  # while it is away
    publishing = asyncio.create_task(ports.queue.publish(download_job("job-2")))
    with pytest.raises(Unavailable):
        await ports.queue.fetch("download", 0.1)
    nats_server.start()

    assert await late == decision + 1
    await publishing
    await held.heartbeat()
    with contextlib.suppress(Unavailable):  # a killed broker may have forgotten that it delivered this
        await held.ack()
    fetched: list[str] = []
    while "job-2" not in fetched:
        delivery = await ports.queue.fetch("download", 5.0)
        assert delivery is not None
        fetched.append(delivery.job.job_id)
        await delivery.ack()
    assert set(fetched) <= {"job", "job-2"}
    assert await ports.log.append_decision(
        Event(run_id="run", payload=CandidateProposed(index=0)), expected_last=decision
    )
    assert not await ports.kv.create("runs", "run", b"2")
    await assert_eventually(lambda: [r.sequence for r in seen] == [1, 2, 3])
    assert [r.sequence async for r in ports.log.read("*")] == [1, 2, 3]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await ports.close()


async def test_a_held_job_comes_again_after_a_restart(nats_server: Broker, tmp_path: Path) -> None:
    ports = await connect_ports(settings_for(nats_server, tmp_path, ack_wait=0.5))
    await ports.queue.publish(download_job("job"))
    assert await ports.queue.fetch("download", 2.0) is not None
    nats_server.kill()
    nats_server.start()
    again = None

    async def fetched() -> bool:
        nonlocal again
        try:
            again = await ports.queue.fetch("download", 1.0)
        except Unavailable:
            return False
        return again is not None

    await assert_eventually(fetched, 15)
    assert again is not None
    assert again.job.job_id == "job"  # how often it was delivered may not have reached the disk
    await ports.close()


async def test_ports_wait_for_a_broker_that_comes_later(nats_server: Broker, tmp_path: Path) -> None:
    nats_server.stop()
    connecting = asyncio.create_task(connect_ports(settings_for(nats_server, tmp_path)))
    await asyncio.sleep(0.5)
    assert not connecting.done()
    nats_server.start()
    async with asyncio.timeout(15):
        ports = await connecting
    await ports.queue.publish(download_job())
    await ports.close()


async def test_a_broker_that_never_comes_is_named(
    nats_server: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nats_server.stop()
    monkeypatch.setattr(nats_link, "CONNECT_PATIENCE", 0.5)
    with pytest.raises(Unavailable, match=f"NATS at {nats_server.url} does not answer"):
        await connect_ports(settings_for(nats_server, tmp_path))


async def test_an_outage_is_unavailable_after_patience(nats_server: Broker, tmp_path: Path) -> None:
    ports = await connect_ports(settings_for(nats_server, tmp_path))
    nats_server.kill()
    link = ports.queue.link  # type: ignore[attr-defined]
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"test: NATS does not answer \(not connected\)"):
        await link.request("test", "$JS.API.INFO", patience=0.3)
    assert time.monotonic() - started < 4
    await ports.close()


async def test_services_that_start_together_agree(nats_server: Broker, tmp_path: Path) -> None:
    several = await asyncio.gather(*(connect_ports(settings_for(nats_server, tmp_path)) for _ in range(5)))
    for ports in several:
        await ports.close()


async def test_changed_settings_reach_what_exists(nats_server: Broker, tmp_path: Path) -> None:
    await (await connect_ports(settings_for(nats_server, tmp_path))).close()
    ports = await connect_ports(settings_for(nats_server, tmp_path, ack_wait=7.0, max_pending=5))
    js = ports.queue.link.js  # type: ignore[attr-defined]
    info = await js.stream_info("WORK")
    assert (info.config.max_msgs, info.config.discard, info.config.retention) == (5, "new", "workqueue")
    consumer = await js.consumer_info("WORK", "merge")
    assert (consumer.config.ack_wait, consumer.config.ack_policy) == (7.0, "explicit")
    await ports.close()


async def test_too_large_a_message_says_what_to_do(broker: Broker, tmp_path: Path) -> None:
    ports = await connect_ports(settings_for(broker, tmp_path))
    with pytest.raises(InvalidInput, match="artifact"):
        await ports.log.append_result(ready("x" * 2_000_000), message_id="large")
    await ports.close()


async def test_a_job_that_cannot_be_read_is_set_aside(nats_server: Broker, tmp_path: Path) -> None:
    ports = await connect_ports(settings_for(nats_server, tmp_path))
    js = ports.queue.link.js  # type: ignore[attr-defined]
    await js.publish("evomerge.work.merge", b"\xff not a job")
    assert await ports.queue.fetch("merge", 1.0) is None
    assert await ports.queue.depth("merge") == 0
    dead = await js.get_msg("DLQ", 1)
    assert dead.data == b"\xff not a job"
    assert "not a Job" in dead.headers["Evomerge-Reason"]
    await ports.close()


@pytest.mark.parametrize("right", [True, False])
async def test_user_and_password(tmp_path: Path, right: bool) -> None:
    server = Broker(tmp_path / "nats", extra_config='authorization { user: "me", password: "hunter2" }\n')
    server.start()
    try:
        settings = settings_for(server, tmp_path, nats_user="me", nats_password="hunter2" if right else "wrong")
        if right:
            ports = await connect_ports(settings)
            await ports.queue.publish(download_job())
            await ports.close()
        else:
            with pytest.raises(Unavailable, match="refuses us") as caught:
                await connect_ports(settings)
            assert "wrong" not in str(caught.value)
    finally:
        server.stop()


async def test_tls(tmp_path: Path, certificates: Path) -> None:
    config = f'tls {{ cert_file: "{certificates}/server.pem", key_file: "{certificates}/server.key" }}\n'
    server = Broker(tmp_path / "nats", extra_config=config)
    server.start()
    try:
        ports = await connect_ports(settings_for(server, tmp_path, nats_tls_ca=str(certificates / "ca.pem")))
        await ports.queue.publish(download_job())
        await ports.close()
        unknown = tmp_path / "other.pem"
        unknown.write_bytes((certificates / "client.pem").read_bytes())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nats_link, "CONNECT_PATIENCE", 0.5)
            with pytest.raises(Unavailable, match=r"CERTIFICATE_VERIFY_FAILED|certificate"):
                await connect_ports(settings_for(server, tmp_path, nats_tls_ca=str(unknown)))
    finally:
        server.stop()


async def test_a_selector_that_lost_the_answer_to_its_own_write_is_not_fenced(
    nats_server: Broker, tmp_path: Path
) -> None:
    """Appending the same decision again finds the first try; another writer's is refused."""
    mine = await connect_ports(settings_for(nats_server, tmp_path))
    other = await connect_ports(settings_for(nats_server, tmp_path))
    started = Event(run_id="run", payload=RunStarted(spec_json="{}"))
    first = await mine.log.append_decision(started, expected_last=0)
    assert await mine.log.append_decision(started, expected_last=0) == first
    with pytest.raises(Fenced):
        await other.log.append_decision(started, expected_last=0)
    assert await mine.log.last_sequence() == first
    for ports in (mine, other):
        await ports.close()


@pytest.mark.slow
async def test_a_long_log_is_read_fast(nats_server: Broker, tmp_path: Path) -> None:
    """5,000 events in a few seconds (100,000 take 3.3 s on two idle cores)."""
    ports = await connect_ports(settings_for(nats_server, tmp_path))
    await _fill(ports, 5_000)
    started = time.monotonic()
    sequences = [r.sequence async for r in ports.log.read("run")]
    assert sequences == list(range(1, 5_001))
    assert time.monotonic() - started < 5
    async with aclosing(ports.log.follow("run", from_sequence=4_999)) as following:  # type: ignore[type-var]
        assert (await anext(following)).sequence == 4_999
    await ports.close()


async def _fill(ports: Ports, count: int) -> None:
    from evomerge_common.adapters import codec

    js = ports.queue.link.js  # type: ignore[attr-defined]
    waiting = []
    for i in range(count):
        waiting.append(await js.publish_async("evomerge.event.run.result.ModelReady", codec.encode(ready(str(i)))))
        if len(waiting) == 2000:
            await asyncio.gather(*waiting)
            waiting.clear()
    await asyncio.gather(*waiting)


async def test_lost_answers_change_nothing(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is published, every answer is lost once, every call is repeated: each has happened once."""
    ports = await connect_ports(settings_for(broker, tmp_path))
    run = "lost-answers"
    publish, lost = JetStreamContext.publish, set[str]()

    async def forgetful(self: JetStreamContext, subject: str, *args: Any, **options: Any) -> Any:
        answer = await publish(self, subject, *args, **options)
        if subject not in lost:
            lost.add(subject)
            raise nats.errors.TimeoutError
        return answer

    monkeypatch.setattr(JetStreamContext, "publish", forgetful)
    first = await ports.log.append_decision(Event(run_id=run, payload=RunStarted(spec_json="{}")), expected_last=0)
    second = await ports.log.append_decision(Event(run_id=run, payload=CandidateProposed(index=0)), expected_last=first)
    third = await ports.log.append_result(ready(run, run), message_id=run)
    assert [r.sequence async for r in ports.log.read(run)] == [first, second, third]
    assert await ports.kv.create("runs", run, b"1")
    lost.clear()
    _, revision = await ports.kv.get("runs", run) or (b"", 0)
    assert await ports.kv.update("runs", run, b"2", revision=revision)
    assert not await ports.kv.create("runs", run, b"3")
    await ports.queue.publish(Job(job_id=run, run_id=run, payload=ExportJob()))
    assert await ports.queue.depth("export") == 1
    delivery = await ports.queue.fetch("export", 2.0)
    assert delivery is not None
    await delivery.dead_letter("test")
    assert await ports.queue.depth("export") == 0
    await ports.close()
