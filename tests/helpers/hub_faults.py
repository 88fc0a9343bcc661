"""Hubs that go wrong by a seeded schedule, and what became of a download from one."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from evomerge_common.domain.messages import Model
from evomerge_common.errors import EvoMergeException
from evomerge_downloader.fetch import Fetcher
from evomerge_models.hub import Hub
from evomerge_models.store import WritableModelStore
from helpers.hub_server import NO_FAULT, Fault, HubServer, write_model_folder, write_safetensors

KINDS = (
    "drop", "429", "5xx", "huge wait", "drip", "truncation", "flipped bit", "wrong etag", "no etag", "redirect loop",
    "404 midway", "moved commit", "html", "cut json", "list", "no ranges",
)  # fmt: skip
API_ONLY = {"html", "cut json", "list"}
FILE_ONLY = {"drop", "drip", "truncation", "flipped bit", "wrong etag", "no etag", "404 midway", "no ranges"}
PAGES = {"html": b"<html>Sign in to this network</html>", "cut json": b'{"id": "org/model", "sha": "0', "list": b"[1]"}


class Schedule:
    """Faults of one or two kinds that befall a share of the requests, some times or for ever."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kinds = [KINDS[seed % len(KINDS)]]
        if self.random.random() < 0.5:
            self.kinds.append(self.random.choice(KINDS))
        self.share = self.random.uniform(0.2, 1.0)
        self.left = self.random.choice([1, 2, 3, 5, 8, 10**9])
        self.healed = False

    def __call__(self, path: str, hub: HubServer) -> Fault:
        if path == "/loop":
            return Fault(redirect=f"{hub.endpoint}/loop")
        kind = self.random.choice(self.kinds)
        is_api = path.startswith("/api/")
        fits = kind not in (FILE_ONLY if is_api else API_ONLY)
        if self.healed or not fits or self.left <= 0 or self.random.random() > self.share:
            return NO_FAULT
        self.left -= 1
        if kind == "moved commit":
            hub.moved["org/model"] = "org/newer"
        if kind == "no ranges":
            hub.ranges = False
        return self.fault(kind, hub)

    def fault(self, kind: str, hub: HubServer) -> Fault:
        place = self.random.random()
        return {
            "drop": Fault(cut=place),
            "429": Fault(status=429, retry_after=self.random.choice(["0", "1", "", "soon"])),
            "5xx": Fault(status=self.random.choice([500, 502, 503, 504]), retry_after=self.random.choice(["", "0"])),
            "huge wait": Fault(status=self.random.choice([429, 503]), retry_after="3600"),
            "drip": Fault(drip=0.02),
            "truncation": Fault(short=place),
            "flipped bit": Fault(flip=place),
            "wrong etag": Fault(etag="0" * 64),
            "no etag": Fault(etag=None),
            "redirect loop": Fault(redirect=f"{hub.endpoint}/loop"),
            "404 midway": Fault(status=404),
        }.get(kind) or (Fault(page=PAGES[kind]) if kind in PAGES else NO_FAULT)


def write_models(root: Path) -> None:
    """Writes org/model of some MB in two shards, and org/newer, which its branch may move to."""
    for name, fill in (("model", 1), ("newer", 2)):
        folder = write_model_folder(root / "org" / name, fill)
        write_safetensors(folder / "model.safetensors", {"a.weight": (512, 512), "b.weight": (512, 1024)}, fill)
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-1_000_000:] = random.Random(fill).randbytes(1_000_000)
        (folder / "model.safetensors").write_bytes(data)


@contextlib.contextmanager
def impatience() -> Iterator[None]:
    """Waits of hundredths of a second, and pieces of 256 kB, so that a file of a test has several."""
    with (
        mock.patch("evomerge_models.hub.patience._FIRST_WAIT", 0.01),
        mock.patch("evomerge_models.hub.patience._LAST_WAIT", 0.04),
        mock.patch("evomerge_models.hub.patience.ENOUGH_BYTES", 1 << 17),
        mock.patch("evomerge_models.hub.part._PIECE_BYTES", 1 << 18),
        mock.patch("evomerge_models.hub.wire._STALL_SECONDS", 0.5),
    ):
        yield


@dataclass(frozen=True)
class Outcome:
    """What became of one schedule: "complete" or the name of the error, and how many requests it took."""

    seed: int
    kinds: tuple[str, ...]
    end: str
    words: str
    requests: int


def play(seed: int, root: Path, scratch: Path) -> Outcome:
    """Fetches org/model from a hub with a schedule, checks what is left, then fetches it with the hub healed.

    Raises:
        AssertionError: something broken is left, or the healed download is not the model.
        Exception: an error that is none of ours.

    """
    store = WritableModelStore(scratch / f"store-{seed}")
    schedule = Schedule(seed)
    with HubServer(root) as hub, impatience():
        hub.fault = hub.fault_of_looks = lambda path: schedule(path, hub)
        fetcher = Fetcher(store, Hub(hub.endpoint))
        try:
            model = fetcher.fetch("org/model")
            end, words = "complete", ""
            check_entry(store, model, root)
        except EvoMergeException as error:
            end, words = type(error).__name__, str(error)
            assert store.list() == []
            check_incoming(store, root)
        requests = len(hub.requests)
        schedule.healed, hub.ranges = True, True
        check_entry(store, fetcher.fetch("org/model"), root)
    shutil.rmtree(store.root)
    return Outcome(seed, tuple(schedule.kinds), end, words, requests)


def check_entry(store: WritableModelStore, model: Model, root: Path) -> None:
    """The entry is the model or the newer one, byte for byte."""
    found = hashes(store.folder(model))
    wanted = [
        {name: h for name, h in hashes(root / "org" / one).items() if name in found} for one in ("model", "newer")
    ]
    assert found in wanted
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= found.keys()


def check_incoming(store: WritableModelStore, root: Path) -> None:
    """What lies there under a file's own name is that file; nothing else looks like one."""
    whole = [set(hashes(root / "org" / one).items()) for one in ("model", "newer")]
    for folder in (store.root / ".incoming").glob("*/"):
        found = {name: h for name, h in hashes(folder).items() if not name.startswith(".parts/")}
        assert any(set(found.items()) <= one for one in whole), found
    assert [path.name for path in store.root.glob("[!.]*")] == []


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
