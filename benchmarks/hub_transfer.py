"""Downloads from a hub on loopback: beside curl, and killed on the way.

`python benchmarks/hub_transfer.py [--megabytes 1000] [--rounds 5] [--kills 10] [--folder /dev/shm]`

Throughput: four files, fetched by curl one after another and by `Hub.fetch` (hashes included), in turns; medians.
Kills: a download of 64 MB by a process of its own is killed (SIGKILL) in mid-file, and started again; the hub counts
what it sends.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from evomerge_models.hub import Hub, RemoteModel
from helpers.hub_kills import kill_on_the_way, write_large_model
from helpers.hub_server import HubServer


def main() -> None:
    """Measures both and prints them."""
    parser = argparse.ArgumentParser(description="Downloads from a hub on loopback.")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go (default: the system's)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        if given.rounds:
            throughput(Path(scratch), given.megabytes, given.rounds)
        if given.kills:
            kills(Path(scratch), given.kills)


def throughput(scratch: Path, megabytes: int, rounds: int) -> None:
    """Prints seconds of curl and ours, in turns."""
    write_large_model(scratch / "hub" / "org" / "large", megabytes, shards=4)
    with serving(scratch / "hub") as endpoint:
        hub = Hub(endpoint)
        model = hub.model("org/large", "")
        curl, ours = [], []
        for turn in range(rounds):
            curl.append(by_curl(endpoint, model, scratch / f"curl-{turn}"))
            ours.append(by_hub(hub, model, scratch / f"ours-{turn}"))
            print(f"{model.bytes / 1e9:.2f} GB: curl {curl[-1]:.2f} s, ours {ours[-1]:.2f} s", flush=True)
    ratio = statistics.median(curl) / statistics.median(ours)
    print(
        f"medians of {rounds}: curl {model.bytes / 1e6 / statistics.median(curl):.0f} MB/s, ours "
        f"{model.bytes / 1e6 / statistics.median(ours):.0f} MB/s with hashes, ratio {ratio:.2f}"
    )


@contextlib.contextmanager
def serving(root: Path) -> Iterator[str]:
    """Runs the test hub in a process of its own; gives its endpoint."""
    script = Path(__file__).resolve().parents[1] / "tests" / "helpers" / "hub_server.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(root), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip().removeprefix("HF_ENDPOINT=")
    finally:
        process.terminate()
        process.wait()


def by_curl(endpoint: str, model: RemoteModel, folder: Path) -> float:
    """Seconds that curl takes for the files."""
    folder.mkdir()
    command = ["curl", "-sSf"]
    for file in model.files:
        command += ["-o", str(folder / file.name), f"{endpoint}/{model.repository}/resolve/{model.commit}/{file.name}"]
    began = time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - began
    shutil.rmtree(folder)
    return seconds


def by_hub(hub: Hub, model: RemoteModel, folder: Path) -> float:
    """Seconds that ours takes, hashes included."""
    folder.mkdir()
    began = time.monotonic()
    hub.fetch(model, folder)
    seconds = time.monotonic() - began
    shutil.rmtree(folder)
    return seconds


def kills(scratch: Path, count: int) -> None:
    """Prints how much of a killed download came twice: where the hub is slow, and where the downloader is."""
    size = write_large_model(scratch / "killed" / "org" / "large", 64)
    for rate, limit in ((4_000_000, 0), (10**9, 20_000_000)):
        with HubServer(scratch / "killed") as hub:
            hub.rate = rate  # of each connection
            kill_on_the_way(hub, scratch / f"store-{rate}", size, count, limit=limit)
            twice = hub.sent - size
        slow = f"with a limit of {limit / 1e6:.0f} MB/s" if limit else f"a hub of {rate / 1e6:.0f} MB/s a connection"
        print(f"{count} kills, {slow}: {twice / 1e6:.2f} of {size / 1e6:.1f} MB ({twice / size:.1%}) came twice")


if __name__ == "__main__":
    main()
