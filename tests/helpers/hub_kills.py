"""Downloads by processes of their own, killed on the way; the hub counts what it sends."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from helpers.hub_server import HubServer, write_model_folder, write_safetensors

FETCH = (
    "import sys, pathlib\n"
    "from evomerge_downloader.fetch import Fetcher\nfrom evomerge_models.hub import Hub\n"
    "from evomerge_models.store import WritableModelStore\n"
    "store = WritableModelStore(pathlib.Path(sys.argv[1]))\n"
    "print(Fetcher(store, Hub(limit=int(sys.argv[3]))).fetch(sys.argv[2]).digest)\n"
)


def write_large_model(folder: Path, megabytes: int, shards: int = 1) -> int:
    """Writes a model with weights of random bytes; returns the size of its files that are fetched."""
    write_model_folder(folder)
    (folder / "model.safetensors").unlink()
    source = random.Random(7)
    placed = {}
    for shard in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / name, {f"w{shard}": (megabytes * 250_000 // shards,)})
        placed[f"w{shard}"] = name
        with (folder / name).open("r+b") as file:
            for at in range(1000, (folder / name).stat().st_size - 1_000_000, 1_000_000):
                file.seek(at)
                file.write(source.randbytes(1_000_000))
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != "README.md")


def start(hub: HubServer, store: Path, limit: int = 0) -> subprocess.Popen[str]:
    """Starts a process that fetches org/large, at `limit` bytes a second at most, and prints its digest."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(store), "org/large", str(limit)],
        env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(store.parent / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_on_the_way(hub: HubServer, store: Path, size: int, kills: int, seed: int = 0, limit: int = 0) -> str:
    """Starts a download again and again, kills it (SIGKILL) in mid-file, and lets the last one end.

    Returns:
        The digest that the last process printed.

    """
    places = sorted(random.Random(seed).uniform(0.03, 0.95) * size for _ in range(kills))
    for place in places:
        process = start(hub, store, limit)
        deadline = time.monotonic() + 60
        while hub.sent < place and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.communicate()
    return digest(start(hub, store, limit))


def digest(process: subprocess.Popen[str]) -> str:
    """Waits for a process that fetches; what it printed last is the digest."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.split()[-1]
