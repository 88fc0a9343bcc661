"""The evaluator as a process, with a real broker: what goes wrong with one candidate stays with that candidate."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from evomerge.v1 import evaluator_pb2, evaluator_pb2_grpc
from evomerge_cli.stack.broker import Broker
from evomerge_common.adapters.codec import to_proto
from evomerge_common.domain.messages import Model
from evomerge_common.domain.suite import Suite
from evomerge_common.runtime.grpc_server import client_channel
from evomerge_common.runtime.settings import Settings
from helpers.support import assert_eventually, python_process
from helpers.tiny_models import make

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ENDLESS = [{"prompt": f"{n}", "answer": "x"} for n in range(2000)]


def suite_of(name: str, kind: str, items: list[dict[str, Any]], **options: Any) -> Suite:
    task = {"name": name, "kind": kind, "items": items, **options}
    return Suite.from_dict({"name": name, "holdout": 0, "batch_size": 4, "tasks": [task]})


def enormous(whole: Path, folder: Path) -> Path:
    """A model whose embedding alone has 4 TB, in a file with a hole of that size."""
    shutil.copytree(whole, folder)
    config = json.loads((folder / "config.json").read_text())
    rows = (4 << 40) // (4 * config["hidden_size"])
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows, "tie_word_embeddings": True}))
    data = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("lm_head.weight", None)
    place = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if "embed_tokens" in name:
            entry["shape"] = [rows, config["hidden_size"]]
        count = 4
        for n in entry["shape"]:
            count *= n
        entry["data_offsets"] = [place, place + count]
        place += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    return folder


async def test_what_goes_wrong_stays_with_its_candidate(
    nats_server: Broker, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    one = make(tmp_path / "one")
    nan = make(tmp_path / "nan", scale=float("nan"))
    long = make(tmp_path / "long", max_position_embeddings=8192)
    huge = enormous(one, tmp_path / "huge")
    port, metrics = unused_tcp_port_factory(), unused_tcp_port_factory()
    settings = Settings(
        grpc_address=f"127.0.0.1:{port}", metrics_address=f"127.0.0.1:{metrics}",
        nats_url=nats_server.url, artifact_store=str(tmp_path / "artifacts"), state_dir=tmp_path / "state",
        log_format="json", device="cpu", max_deliver=1, score_timeout=20.0, allow_code=True,
    )  # fmt: skip
    with python_process("evomerge_evaluator", settings, cwd=tmp_path) as process:
        async with client_channel(f"127.0.0.1:{port}", settings) as channel:
            stub = evaluator_pb2_grpc.EvaluatorServiceStub(channel)
            health = health_pb2_grpc.HealthStub(channel)

            async def serving() -> bool:
                return bool((await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == 1)

            async def up() -> bool:
                try:
                    return await serving()
                except grpc.RpcError:
                    return False

            async def outcome(folder: Path, suite: Suite, *, kill: bool = False) -> Any:
                digest = "sha256:" + (folder.name.encode().hex() + "0" * 64)[:64]
                model = to_proto(Model(reference=str(folder), digest=digest, uri=folder.as_uri()))
                request = evaluator_pb2.EvaluateRequest(model=model, suite_json=suite.to_json(), split="all")
                job = (await stub.Evaluate(request)).job_id
                if kill:
                    children = psutil.Process(process.pid).children
                    await assert_eventually(lambda: sum(c.cpu_times().user for c in children()) > busy + 0.5, 60)
                    for child in children():
                        if "spawn_main" in " ".join(child.cmdline()):
                            os.kill(child.pid, signal.SIGKILL)

                async def ended() -> bool:
                    assert await serving()
                    found.append(await stub.GetEvaluation(evaluator_pb2.GetEvaluationRequest(job_id=job)))
                    return bool(found[-1].state != "queued")

                found: list[Any] = []
                await assert_eventually(ended, 100, every=0.1)
                return found[-1]

            async def next_is_scored(name: str) -> None:
                items = [{"prompt": f"{name} {n}", "choices": [" a", " b"], "answer": 0} for n in range(4)]
                result = await outcome(one, suite_of(name, "multiple_choice", items))
                assert result.state == "done", result.error

            await assert_eventually(up, 60)
            assert not psutil.Process(process.pid).children(), "an idle evaluator holds no torch: no child yet"
            await next_is_scored("first")
            few = [{"prompt": "1 + 1 =", "answer": "2"}]
            failed = await outcome(nan, suite_of("nan", "exact_match", few))
            assert (failed.state, failed.error.type) == ("failed", "NonFiniteScore")
            await next_is_scored("after nan")

            failed = await outcome(huge, suite_of("huge", "exact_match", few))
            assert (failed.state, failed.error.type) == ("failed", "OutOfMemory")
            await next_is_scored("after memory")

            busy = sum(c.cpu_times().user for c in psutil.Process(process.pid).children())
            endless = suite_of("killed", "exact_match", ENDLESS, max_new_tokens=4096, stop="\0")
            failed = await outcome(long, endless, kill=True)
            assert (failed.state, failed.error.type) == ("failed", "WorkerCrashed")
            await next_is_scored("after crash")

            failed = await outcome(long, suite_of("endless", "exact_match", ENDLESS, max_new_tokens=4096, stop="\0"))
            assert (failed.state, failed.error.type) == ("failed", "DeadlineExceeded")
            await next_is_scored("after endless")

            prompt = "1 + 1 = 2, " * 1_000_000
            done = await outcome(one, suite_of("large", "exact_match", [{"prompt": prompt, "answer": "3"}]))
            assert done.state == "done", "cut from the left"
            await next_is_scored("after 10 MB")

            code = [{"prompt": "x = 1\n#", "tests": "while True: pass"}, {"prompt": "x = 1\n#", "tests": "assert x"}]
            done = await outcome(one, suite_of("code", "code", code, timeout=0.5, stop="\n"))
            assert list(done.result.scores[0].item_scores) == [0.0, 1.0], "a hanging program fails its item alone"
            await next_is_scored("after code")
            assert await serving()
            assert process.poll() is None
