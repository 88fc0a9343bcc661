"""A small model store that processes share while they are killed: what stays is whole, and within the quota.

`python benchmarks/store_processes.py [--seconds 120] [--seed 0]` keeps three processes fetching models of a local hub,
in an order that follows the seed, and kills one every few seconds; it fails where a process reads another model than it
asked for, where the store is larger than its quota, or where it ends with something broken.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from evomerge_common.errors import DiskFull, Unavailable
from evomerge_downloader.fetch import Fetcher
from evomerge_models.content import content_digest
from evomerge_models.hashes import HashCache
from evomerge_models.hub import Hub
from evomerge_models.store import WritableModelStore
from helpers.hub_server import HubServer, write_model_folder, write_safetensors

MODELS, SIDE = 6, 316
QUOTA = int(3.4 * 4 * SIDE * SIDE)
PROCESSES = 3


def work(root: Path, endpoint: str, seed: int) -> None:
    """Fetches models for ever, and reads each while it is held."""
    rng = random.Random(seed)
    store = WritableModelStore(root / "store", QUOTA)
    fetcher = Fetcher(store, Hub(endpoint))
    while True:
        number = rng.randrange(MODELS)
        with store.pins.of_process() as owner:
            try:
                model = fetcher.fetch(f"org/m{number}", owner=owner)
            except (DiskFull, Unavailable):  # the others hold what there is
                continue
            time.sleep(0.03 * rng.random())
            data = (store.folder(model) / "model.safetensors").read_bytes()
            assert data.endswith(bytes([number]) * 1000), f"m{number} is another model"
            print("read", number, flush=True)


def play(root: Path, seconds: float, seed: int) -> dict[str, float]:
    """Starts and kills the processes; returns counts."""
    for number in range(MODELS):
        folder = write_model_folder(root / "hub" / "org" / f"m{number}")
        write_safetensors(folder / "model.safetensors", {"a.weight": (SIDE, SIDE)}, number)
    rng, running, kills, largest = random.Random(seed), list[subprocess.Popen[bytes]](), 0, 0
    store = WritableModelStore(root / "store", QUOTA)
    with HubServer(root / "hub") as hub, (root / "output").open("ab") as output:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            while len(running) < PROCESSES:
                given = [sys.executable, __file__, "--work", str(root), hub.endpoint, str(rng.randrange(1 << 30))]
                running.append(subprocess.Popen(given, stdout=output, stderr=output))
            time.sleep(rng.uniform(1.5, 5.0))
            one = running.pop(rng.randrange(len(running)))
            assert one.poll() is None, (root / "output").read_text()[-2000:]
            one.kill()
            one.wait()
            kills += 1
            largest = max(largest, sum(store.bytes_of(model) for model in store.list()))
        for one in running:
            one.kill()
            one.wait()
    assert largest <= QUOTA, f"{largest} bytes, and the quota is {QUOTA}"
    for model in store.list():
        assert f"sha256:{content_digest(store.folder(model), HashCache(root / 'fresh.json'))}" == model.digest
        assert store.pins.owners(model.digest.removeprefix("sha256:")) == []
    reads = len(re.findall(r"^read \d+$", (root / "output").read_text(), re.MULTILINE))
    return {"reads": reads, "kills": kills, "largest share of the quota": round(largest / QUOTA, 2)}


def main() -> None:
    """Plays once and prints the counts."""
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, value in play(Path(folder), given.seconds, given.seed).items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
