"""ArtifactStore: what every adapter does, and what the folder does besides."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from evomerge_common.adapters.filesystem import FilesystemArtifactStore
from evomerge_common.adapters.memory_stores import MemoryArtifactStore
from evomerge_common.errors import NotFound, UnsafeFile, UnservedScheme
from evomerge_common.ports import ArtifactStore


@pytest.fixture
def folder_store(tmp_path: Path) -> FilesystemArtifactStore:
    return FilesystemArtifactStore(tmp_path / "my artifacts")


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "memory":
        return MemoryArtifactStore(tmp_path / "local")
    found: FilesystemArtifactStore = request.getfixturevalue("folder_store")
    return found


def staged(store: ArtifactStore, text: str) -> Path:
    folder = store.stage("scratch/abc")
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text(text)
    (folder / "sub" / "b.txt").write_text(text)
    return folder


def leftovers(store: ArtifactStore) -> list[Path]:
    """What is still staged: it lies beside a folder that is staged now."""
    probe = store.stage("probe")
    found = [path for path in probe.parent.iterdir() if path != probe]
    probe.rmdir()
    return found


def test_a_folders_uris_are_file_uris(folder_store: FilesystemArtifactStore) -> None:
    uri = folder_store.put("suites/a b.json", b"{}")
    assert uri.startswith("file:///")
    assert " " not in uri
    assert folder_store.open(uri) == folder_store.root / "suites" / "a b.json"


def test_a_file_comes_back_by_its_uri(store: ArtifactStore) -> None:
    uri = store.put("suites/a b.json", b"{}")
    assert store.get(uri) == b"{}"
    assert store.open(uri).read_bytes() == b"{}"
    assert store.put("suites/a b.json", b"[]") == uri
    assert store.get(uri) == b"[]"
    assert leftovers(store) == []


def test_what_is_staged_lies_on_the_stores_file_system(folder_store: FilesystemArtifactStore) -> None:
    folder = staged(folder_store, "one")
    assert os.stat(folder).st_dev == os.stat(folder_store.root).st_dev
    assert not (folder_store.root / "scratch").exists()


def test_a_folder_comes_back_by_its_uri(store: ArtifactStore) -> None:
    folder = staged(store, "one")
    uri = store.commit(folder, "scratch/abc")
    assert (store.open(uri) / "sub" / "b.txt").read_text() == "one"
    assert not folder.exists()
    with pytest.raises(NotFound, match="folder"):
        store.get(uri)


def test_a_commit_replaces_the_whole_folder(store: ArtifactStore) -> None:
    first = staged(store, "one")
    (first / "only_in_first").write_text("")
    uri = store.commit(first, "scratch/abc")
    assert store.commit(staged(store, "two"), "scratch/abc") == uri
    assert sorted(p.name for p in store.open(uri).iterdir()) == ["a.txt", "sub"]
    assert leftovers(store) == []


def test_a_reader_never_sees_half_of_a_folder(folder_store: FilesystemArtifactStore) -> None:
    store = folder_store
    uri = store.commit(staged(store, "0"), "scratch/abc")
    seen: set[tuple[str, str]] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                handle = os.open(store.open(uri), os.O_RDONLY | os.O_DIRECTORY)
            except (NotFound, FileNotFoundError):
                continue
            try:
                texts = []
                for name in ("a.txt", "sub/b.txt"):
                    with open(os.open(name, os.O_RDONLY, dir_fd=handle)) as file:
                        texts.append(file.read())
                seen.add((texts[0], texts[1]))
            except FileNotFoundError:
                pass  # it was replaced, and what it was is being removed
            finally:
                os.close(handle)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(1, 15):
        store.commit(staged(store, str(i)), "scratch/abc")
    done.set()
    reader.join()
    assert seen
    assert all(a == b for a, b in seen)


def test_two_writers_of_one_name(store: ArtifactStore) -> None:
    folders = [staged(store, str(i)) for i in range(8)]
    errors: list[Exception] = []
    uris: list[str] = []

    def commit(folder: Path) -> None:
        try:
            uris.append(store.commit(folder, "scratch/abc"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=commit, args=(f,)) for f in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert leftovers(store) == []
    path = store.open(uris[0])
    assert (path / "a.txt").read_text() == (path / "sub" / "b.txt").read_text()


def test_delete_is_final_and_repeatable(store: ArtifactStore) -> None:
    folder, file = store.commit(staged(store, "x"), "scratch/abc"), store.put("suites/x.json", b"")
    for uri in (folder, file):
        store.delete(uri)
        store.delete(uri)
        with pytest.raises(NotFound, match="no artifact"):
            store.open(uri)
    assert leftovers(store) == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "", "a//b", ".", ".staging/x", "a\0b", "a\\b"])
def test_names_that_leave_the_store(store: ArtifactStore, name: str) -> None:
    with pytest.raises(UnsafeFile, match="leaves its store"):
        store.put(name, b"")
    with pytest.raises(UnsafeFile, match="leaves its store"):
        store.stage(name)


@pytest.mark.parametrize("scheme", ["s3", "gs", "https", "S3"])
def test_a_scheme_that_nobody_serves(store: ArtifactStore, scheme: str) -> None:
    uri = f"{scheme}://bucket/scratch/abc"
    for use in (store.get, store.open, store.delete):
        with pytest.raises(UnservedScheme, match=f"^{uri}: .*serves"):
            use(uri)


def test_uris_that_leave_the_store(folder_store: FilesystemArtifactStore, tmp_path: Path) -> None:
    store = folder_store
    (tmp_path / "secret").write_text("secret")
    for uri in (
        f"file://{store.root}/../secret",
        f"file://{store.root}/%2e%2e/secret",
        f"file://{tmp_path}/secret",
        "file:///etc/passwd",
        "file://elsewhere/x",
        f"{store.root}/x",
        "",
    ):
        with pytest.raises((NotFound, UnsafeFile)):
            store.get(uri)
        with pytest.raises((NotFound, UnsafeFile)):
            store.delete(uri)
    assert (tmp_path / "secret").exists()


def test_only_a_staged_folder_is_committed(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UnsafeFile, match="not staged"):
        store.commit(tmp_path / "mine", "scratch/abc")
    assert (tmp_path / "mine").exists()


def test_what_a_killed_process_left_is_swept(folder_store: FilesystemArtifactStore) -> None:
    store = folder_store
    mine = staged(store, "x")
    code = """if True:
        import os, sys
        from pathlib import Path
        from evomerge_common.adapters.filesystem import FilesystemArtifactStore

        (FilesystemArtifactStore(Path(sys.argv[1])).stage("scratch/x") / "half").write_text("half")
        os.kill(os.getpid(), 9)
    """
    assert subprocess.run([sys.executable, "-c", code, str(store.root)], check=False).returncode == -9
    assert len(leftovers(store)) == 2
    FilesystemArtifactStore(store.root)
    assert leftovers(store) == [mine]
