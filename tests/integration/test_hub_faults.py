"""A hub that goes wrong: each download ends complete and verified or in a typed error, and can be gone on with."""

import dataclasses
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import DiskFull, ModelNotFound, Unavailable, UnsafeFile
from evomerge_downloader.fetch import Fetcher
from evomerge_models.downloads import downloads
from evomerge_models.hub import Hub, Progress
from evomerge_models.hub.part import Part
from evomerge_models.store import WritableModelStore
from helpers.hub_faults import KINDS, check_entry, check_incoming, impatience, play, write_models
from helpers.hub_kills import digest, kill_on_the_way, start, write_large_model
from helpers.hub_server import NO_FAULT, Fault, HubServer

PIECES = 13
"""Of 256 kB, in the weights of `write_models`."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_models(folder / "hub")
    return folder / "hub"


@pytest.fixture
def hub(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer(root) as server, impatience():
        yield server


@pytest.mark.parametrize("seed", range(len(KINDS)))
def test_schedules(seed: int, root: Path, tmp_path: Path) -> None:
    assert play(seed, root, tmp_path).kinds[0] == KINDS[seed]


# ---- bytes ----


@pytest.mark.slow
def test_a_killed_download_goes_on_at_the_byte(tmp_path: Path) -> None:
    size = write_large_model(tmp_path / "hub" / "org" / "large", 40)
    with HubServer(tmp_path / "hub") as hub:
        hub.rate = 4_000_000
        first = kill_on_the_way(hub, tmp_path / "store", size, kills=3)
        assert size <= hub.sent < 1.03 * size
        hub.rate = 0
        assert digest(start(hub, tmp_path / "other")) == first


@pytest.mark.slow
def test_two_processes_and_one_store_fetch_each_byte_once(tmp_path: Path) -> None:
    size = write_large_model(tmp_path / "hub" / "org" / "large", 20)
    with HubServer(tmp_path / "hub") as hub:
        hub.rate = 10_000_000
        both = [start(hub, tmp_path / "store") for _ in range(2)]
        assert len({digest(process) for process in both}) == 1
        assert hub.files_fetched().count("model.safetensors") == 2, "pieces"
        assert hub.sent - size < 200_000, "headers and small files are looked at before"


def test_a_broken_connection_is_gone_on_with_at_the_byte(hub: HubServer, tmp_path: Path) -> None:
    there = Hub(hub.endpoint)
    remote = there.model("org/model", "")
    hub.break_next = 3
    there.fetch(remote, tmp_path / "folder")
    assert hub.sent == remote.bytes


def test_counts_of_another_file_or_that_lie_are_not_believed(
    hub: HubServer, root: Path, store: WritableModelStore, fetcher: Fetcher
) -> None:
    pieces = iter([NO_FAULT] * 5)
    hub.fault = lambda path: next(pieces, Fault(status=404)) if path.endswith("model.safetensors") else NO_FAULT
    with pytest.raises(ModelNotFound, match=r"has it no longer \(HTTP 404\)"):
        fetcher.fetch("org/model")
    check_incoming(store, root)
    (parts,) = store.root.glob(".incoming/*/.parts")
    weights = root / "org/model/model.safetensors"
    with (parts / "model.safetensors").open("wb") as file:
        file.truncate(weights.stat().st_size)
    for counts in (b"", b"x" * (32 + 8 * PIECES), b"y" * 40):
        (parts / "model.safetensors.pieces").write_bytes(counts)
        with pytest.raises(ModelNotFound):
            fetcher.fetch("org/model")
    counts = (parts / "model.safetensors.pieces").read_bytes()
    (parts / "model.safetensors.pieces").write_bytes(counts[:32] + (1 << 18).to_bytes(8, "little") + counts[40:])
    hub.fault = lambda _: NO_FAULT  # now a power cut: a count without its bytes
    check_entry(store, fetcher.fetch("org/model"), root)


def test_a_bit_that_flips_once_is_fetched_again(
    hub: HubServer, root: Path, store: WritableModelStore, fetcher: Fetcher
) -> None:
    flips = iter([Fault(flip=0.5)])
    hub.fault = lambda path: next(flips, NO_FAULT) if path.endswith(".safetensors") else NO_FAULT
    check_entry(store, fetcher.fetch("org/model"), root)
    assert hub.files_fetched().count("model.safetensors") == 2 * PIECES


def test_a_file_that_comes_wrong_each_time_is_refused_and_removed(
    hub: HubServer, root: Path, store: WritableModelStore, fetcher: Fetcher
) -> None:
    hub.fault = lambda path: Fault(flip=0.5) if path.endswith(".safetensors") else NO_FAULT
    with pytest.raises(UnsafeFile, match="fetched 2 times and came wrong each time"):
        fetcher.fetch("org/model")
    assert hub.files_fetched().count("model.safetensors") == 2 * PIECES
    assert not list(store.root.glob(".incoming/*/.parts/model.safetensors*"))


def test_a_hub_without_ranges_or_etags(hub: HubServer, root: Path, store: WritableModelStore, fetcher: Fetcher) -> None:
    hub.ranges, hub.break_next = False, 2
    hub.fault = lambda path: Fault(etag=None) if "/resolve/" in path else NO_FAULT
    check_entry(store, fetcher.fetch("org/model"), root)


def test_an_error_while_a_file_starts_again_ends_the_download(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Hub(hub.endpoint).model("org/model", "")
    files = sorted(remote.files, key=lambda file: -file.size)
    wrong, restart = threading.Event(), Part.restart

    def fault(path: str) -> Fault:
        if path.endswith("model.safetensors"):
            return Fault(flip=0.5)
        wrong.wait(10)
        return Fault(status=404)

    def late(part: Part, *, in_one_piece: bool = False) -> None:
        wrong.set()
        while any(thread.name == "download" for thread in threading.enumerate()):
            time.sleep(0.01)
        restart(part, in_one_piece=in_one_piece)

    monkeypatch.setattr("evomerge_models.hub.bandwidth.CONNECTIONS", 1)
    monkeypatch.setattr(Part, "restart", late)
    hub.fault = fault
    errors: list[Exception] = []

    def fetch() -> None:
        try:
            Hub(hub.endpoint).fetch(dataclasses.replace(remote, files=tuple(files)), tmp_path / "folder")
        except ModelNotFound as error:
            errors.append(error)

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(10)
    assert "has it no longer" in str(errors)


def test_a_full_disk_gets_its_room_back(
    hub: HubServer, store: WritableModelStore, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, written = os.pwrite, 0

    def full(handle: int, data: bytes, place: int) -> int:
        nonlocal written
        written += len(data)
        if written > 1_000_000:
            raise OSError(28, "No space left on device")
        return pwrite(handle, data, place)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFull, match=r"filled up while model\.safetensors"):
        fetcher.fetch("org/model")
    assert not [path for path in store.root.glob(".incoming/*") if path.is_dir()]
    assert store.list() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_small_disk_that_fills_up(
    hub: HubServer, store: WritableModelStore, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", store.root], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 40))  # others took it meanwhile
        with pytest.raises(DiskFull, match="filled up"):
            fetcher.fetch("org/model")
        status = os.statvfs(store.root)
        assert (status.f_blocks - status.f_bfree) * status.f_frsize < 100_000
    finally:
        subprocess.run(["umount", store.root], check=True)


# ---- waits ----


def test_a_short_wait_is_obeyed_and_told(hub: HubServer, root: Path, store: WritableModelStore) -> None:
    faults = iter([Fault(status=429, retry_after="1")])
    hub.fault = lambda path: next(faults, NO_FAULT) if path.endswith(".safetensors") else NO_FAULT
    notes: list[str] = []
    Fetcher(store, Hub(hub.endpoint), tell=lambda progress: notes.append(progress.note)).fetch("org/model")
    assert "the hub answers HTTP 429; the hub asks to wait 1 s" in notes


@pytest.mark.parametrize("place", ["/api/", "/resolve/"])
@pytest.mark.parametrize("as_date", [False, True])
def test_a_long_wait_is_an_error_that_says_when(hub: HubServer, fetcher: Fetcher, place: str, as_date: bool) -> None:
    when = datetime.now(UTC) + timedelta(hours=1)
    text = when.strftime("%a, %d %b %Y %H:%M:%S GMT") if as_date else "3600"
    hub.fault = lambda path: Fault(status=503, retry_after=text) if place in path else NO_FAULT
    with pytest.raises(Unavailable, match=rf"come back in 3[56]\d\d s, at {when:%Y-%m-%d %H:}.*UTC"):
        fetcher.fetch("org/model")


@pytest.mark.parametrize("asked", ["1764286000000", "9" * 400])
def test_a_wait_beyond_all_calendars_is_told_as_a_year(hub: HubServer, fetcher: Fetcher, asked: str) -> None:
    hub.fault = lambda path: Fault(status=503, retry_after=asked) if path.startswith("/api/") else NO_FAULT
    with pytest.raises(Unavailable, match="come back in 31536000 s"):
        fetcher.fetch("org/model")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_one_failure_of_the_api_is_tried_again(hub: HubServer, fetcher: Fetcher, status: int) -> None:
    faults = iter([Fault(status=status)])
    hub.fault = lambda path: next(faults, NO_FAULT) if path.startswith("/api/") else NO_FAULT
    assert fetcher.fetch("org/model").bytes > 0


def test_a_connection_that_brings_next_to_nothing_is_given_up(
    hub: HubServer, root: Path, store: WritableModelStore, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.hub_server.CHUNK", 10)
    faults = iter([Fault(drip=0.1)])
    hub.fault = lambda path: next(faults, NO_FAULT) if path.endswith(".safetensors") else NO_FAULT
    check_entry(store, fetcher.fetch("org/model"), root)


def test_a_look_at_a_file_that_drips_ends(hub: HubServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Hub(hub.endpoint).model("org/model", "")
    monkeypatch.setattr("helpers.hub_server.CHUNK", 1)
    monkeypatch.setattr("evomerge_models.hub.client._READ_SECONDS", 0.1)
    hub.fault_of_looks = lambda _: Fault(drip=0.03)
    with pytest.raises(Unavailable, match="TimeoutError"):
        Hub(hub.endpoint).read(remote, "config.json", 0, 1000)


# ---- answers ----


@pytest.mark.parametrize("page", [b"<html>Sign in</html>", b'{"sha": "0', b"[1]", b'{"siblings": [1]}', b"[" * 10**5])
def test_an_answer_that_is_none_of_a_hub(hub: HubServer, fetcher: Fetcher, page: bytes) -> None:
    hub.fault = lambda path: Fault(page=page) if path.startswith("/api/") else NO_FAULT
    with pytest.raises(Unavailable, match=r"not what a hub says|names no commit"):
        fetcher.fetch("org/model")


@pytest.mark.parametrize(
    "change",
    [{"size": "many"}, {"size": -1}, {"rfilename": 7}, {"lfs": {"sha256": "no"}}, {"lfs": [1]}, {"blobId": "../x"}],
)
def test_a_file_of_the_answer_that_is_none(
    hub: HubServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    from helpers.hub_server import Repository

    info = Repository.info

    def changed(self: Repository) -> dict[str, object]:
        answer = info(self)
        answer["siblings"][0].update(change)
        return answer

    monkeypatch.setattr(Repository, "info", changed)
    with pytest.raises(Unavailable, match="not what a hub says"):
        fetcher.fetch("org/model")


@pytest.mark.parametrize(("status", "error"), [(500, Unavailable), (418, Unavailable), (403, ModelNotFound)])
def test_a_status_instead_of_a_file(hub: HubServer, fetcher: Fetcher, status: int, error: type[Exception]) -> None:
    hub.fault = lambda path: Fault(status=status) if "/resolve/" in path else NO_FAULT
    with pytest.raises(error, match=f"HTTP {status}"):
        fetcher.fetch("org/model")


@pytest.mark.parametrize("place", ["/api/", "/resolve/"])
def test_redirects_in_a_circle(hub: HubServer, fetcher: Fetcher, place: str) -> None:
    hub.fault = lambda path: Fault(redirect=f"{hub.endpoint}{path}") if place in path else NO_FAULT
    with pytest.raises(Unavailable, match=r"from one address to the next|TooManyRedirects"):
        fetcher.fetch("org/model")


@pytest.mark.parametrize("address", ["ftp://there/file", "http://[bad/", "http://127.0.0.1:9/x\u00e9 y", "//"])
def test_a_redirect_to_nowhere(hub: HubServer, fetcher: Fetcher, address: str) -> None:
    hub.fault = lambda path: Fault(redirect=address) if "/resolve/" in path else NO_FAULT
    with pytest.raises(Unavailable, match="5 tries"):
        fetcher.fetch("org/model")


# ---- other hosts ----


def test_the_token_goes_to_the_hub_alone(
    hub: HubServer, root: Path, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with HubServer(root) as other:
        hub.mirror = other.endpoint
        fetcher.fetch("org/model")
        assert set(hub.tokens) == {"Bearer hf_test"}
        assert set(other.tokens) == {""}
        assert other.files_fetched().count("model.safetensors") == PIECES
        assert hub.sent == 0
    assert hub.files_fetched().count("model.safetensors") < PIECES, "where a file lies is asked once, and remembered"


def test_an_address_that_has_expired_is_asked_for_again(
    hub: HubServer, root: Path, store: WritableModelStore, fetcher: Fetcher
) -> None:
    with HubServer(root) as other:
        hub.mirror = other.endpoint
        refusals = iter([NO_FAULT] * 8 + [Fault(status=403)] * 3)
        other.fault = lambda _: next(refusals, NO_FAULT)
        check_entry(store, fetcher.fetch("org/model"), root)


def test_files_come_through_the_proxy_of_the_environment(
    hub: HubServer, root: Path, store: WritableModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Hub(hub.endpoint).model("org/model", "")
    monkeypatch.setenv("http_proxy", f"http://me:secret@{hub.endpoint.removeprefix('http://')}")
    monkeypatch.setenv("no_proxy", "")
    hub.requests.clear()
    folder = store.root / "there"
    Hub("http://hub.invalid").fetch(remote, folder)
    assert (folder / "config.json").is_file()
    assert hub.files_fetched()


def test_files_come_by_tls_from_whom_the_client_trusts(
    hub: HubServer, root: Path, tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Hub(hub.endpoint).model("org/model", "")
    with HubServer(root) as other:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        other.socket = context.wrap_socket(other.socket, server_side=True)
        there = Hub(f"https://localhost:{other.server_address[1]}")
        with pytest.raises(Unavailable, match="SSLCertVerificationError"):
            there.fetch(remote, tmp_path / "none")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
        there.fetch(remote, tmp_path / "there")
        assert (tmp_path / "there" / "model.safetensors").stat().st_size > 3_000_000


# ---- offline, and what is told ----


def test_offline_uses_what_the_store_holds(
    hub: HubServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    model = fetcher.fetch("org/model")
    fetcher.fetch(f"org/model@{model.commit}")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetcher.fetch("org/model") == model
    said = "".join(capsys.readouterr())
    assert "the commit fetched before is used" in said
    assert "HF_HUB_OFFLINE is set" in said
    with pytest.raises(ModelNotFound, match=r"org/newer is not in the model store .* HF_HUB_OFFLINE is set"):
        fetcher.fetch("org/newer")
    assert hub.requests == []


def test_how_far_a_download_is(hub: HubServer, store: WritableModelStore) -> None:
    steps: list[Progress] = []
    seen = []

    def tell(progress: Progress) -> None:
        steps.append(progress)
        seen.extend(downloads(store.root, 0.0))

    hub.rate = 1_000_000
    model = Fetcher(store, Hub(hub.endpoint), tell=tell).fetch("org/model")
    counts = [step.done for step in steps]
    assert counts == sorted(counts)
    assert (counts[-1], {step.total for step in steps}) == (model.bytes, {model.bytes})
    assert any(0 < count < model.bytes for count in counts)
    assert {(one.reference, one.total) for one in seen} == {("org/model", model.bytes)}
    assert downloads(store.root, 0.0) == []


def test_a_limit_holds_for_all_connections_together(
    hub: HubServer, store: WritableModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = datetime.now(UTC)
    model = Fetcher(store, Hub(hub.endpoint, limit=2_000_000)).fetch("org/model")
    assert (datetime.now(UTC) - began).total_seconds() > 0.9 * model.bytes / 2_000_000


def test_a_command_offline_says_so_on_stderr(
    hub: HubServer, store: WritableModelStore, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from huggingface_hub import constants

    from evomerge_cli.commands.merge import fetch
    from evomerge_cli.console import Console

    fetcher.fetch("org/model")
    capsys.readouterr()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("EVOMERGE_MODEL_STORE", str(store.root))
    fetch([ModelReference("org/model")], Console())
    said = capsys.readouterr()
    assert said.out == ""
    assert "HF_HUB_OFFLINE is set" in said.err
