"""A small local hub: what the real huggingface_hub client needs to find, pin and fetch a model.

`python tests/helpers/hub_server.py FOLDER --port N` serves every FOLDER/org/name as a repository at one commit (a hash
of its files); then HF_ENDPOINT=http://127.0.0.1:N makes `org/name` a hub id that downloads from here. A file `.gated`
in a repository makes it ask for a token.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import math
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".model")
HUGE_BYTES = 1 << 26


def _header_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """A file's length and header of float32 tensors, and how many bytes of them follow."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text, end


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], fill: int = 0) -> None:
    """A valid file of float32 tensors, every byte of which is `fill`."""
    header, size = _header_of(shapes)
    path.write_bytes(header + bytes([fill]) * size)


def write_model_folder(folder: Path, fill: int = 0) -> Path:
    """The files of a model of 2 layers and 320 parameters; for what looks at names and headers alone."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
    }  # fmt: skip
    config["tie_word_embeddings"] = True  # it has no head of its own
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("# not part of the model")
    write_safetensors(folder / "model.safetensors", {"a.weight": (16, 16), "b.weight": (64,)}, fill)
    return folder


def write_sparse(folder: Path, shapes: Mapping[str, tuple[int, ...]], **config: Any) -> Path:
    """A model of which the headers alone are on the disk."""
    write_model_folder(folder)
    told = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1, **config}
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": False, **told}))
    header, size = _header_of(shapes)
    path = folder / "model.safetensors"
    path.write_bytes(header)
    os.truncate(path, len(header) + size)
    return folder


def write_adapter(folder: Path, module: str = "a", *, base: str = "", size: int = 16, **config: Any) -> Path:
    """A LoRA adapter of rank 4 on one square matrix of such a model."""
    folder.mkdir(parents=True)
    told = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": [module], "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps({**told, **config}))
    name = f"base_model.model.{module}.lora_"
    factors: dict[str, tuple[int, ...]] = {f"{name}A.weight": (4, size), f"{name}B.weight": (size, 4)}
    write_safetensors(folder / "adapter_model.safetensors", factors)
    return folder


def card_of(path: Path) -> dict[str, Any]:
    """The metadata at the head of a model card, as the hub's API gives it."""
    text = path.read_text() if path.is_file() else ""
    return yaml.safe_load(text[4:].partition("\n---")[0]) or {} if text.startswith("---\n") else {}


@functools.lru_cache(maxsize=4096)
def hashes_of(path: Path, size: int, _mtime_ns: int) -> tuple[str, str]:
    """Git's SHA-1, and SHA-256 of an LFS file; of a huge (sparse) one, never fetched whole, of its beginning."""
    with path.open("rb") as file:
        data = file.read(1 << 16 if size > HUGE_BYTES and 2 * 512 * path.stat().st_blocks < size else -1)
    blob = hashlib.sha1(b"blob %d\0" % size + data).hexdigest()
    return blob, hashlib.sha256(data).hexdigest() if path.name.endswith(LFS_SUFFIXES) else ""


@dataclass
class Repository:
    """A folder as the hub shows it."""

    name: str
    folder: Path
    hashes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """File → (git blob SHA-1, SHA-256 for LFS files or "")."""

    def __post_init__(self) -> None:
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.name.startswith(".gated"):
                stat = path.stat()
                found = hashes_of(path, stat.st_size, stat.st_mtime_ns)
                self.hashes[path.relative_to(self.folder).as_posix()] = found

    @property
    def commit(self) -> str:
        return hashlib.sha1(json.dumps([self.name, self.hashes]).encode()).hexdigest()

    @property
    def gated(self) -> bool:
        return (self.folder / ".gated").exists()

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, (blob, sha256) in self.hashes.items():
            size = (self.folder / name).stat().st_size
            sibling: dict[str, Any] = {"rfilename": name, "size": size, "blobId": blob}
            if sha256:
                sibling["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
            siblings.append(sibling)
        card = card_of(self.folder / "README.md")
        tags = [f"license:{card['license']}"] if "license" in card else []
        return {
            "_id": self.commit[:24], "id": self.name, "modelId": self.name, "sha": self.commit, "private": False,
            "gated": False, "disabled": False, "tags": tags, "cardData": card, "downloads": 0,
            "likes": 0, "siblings": siblings,
        }  # fmt: skip

    def tree(self) -> list[dict[str, Any]]:
        found = []
        for name, (blob, sha256) in self.hashes.items():
            size = (self.folder / name).stat().st_size
            entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": blob}
            if sha256:
                entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
            found.append(entry)
        return found


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer; the faults of a body are places in it, as fractions of what was asked for.

    Attributes:
        status: answered in place of the file or record, with `retry_after`.
        redirect: the answer sends to this address.
        page: the answer is this, and no record or file.
        cut: the connection is closed there, though more was promised.
        short: the file ends there, as the answer's headers say too.
        flip: one bit is wrong there.
        etag: the header, in place of the true one; None: it is left out.
        drip: seconds between bits of 16 kB.

    """

    status: int = 0
    retry_after: str = ""
    redirect: str = ""
    page: bytes | None = None
    cut: float = 1.0
    short: float = 1.0
    flip: float | None = None
    etag: str | None = ""
    drip: float = 0.0


NO_FAULT = Fault()
CHUNK = 16 * 1024


class HubServer(ThreadingHTTPServer):
    """Serves the repositories under `root`, on loopback alone.

    Attributes:
        requests: "METHOD path" of every request, in order; "LOOK path" of what is read before a download is begun.
        break_next: for so many file requests the connection is cut half-way through the body.
        lie: name → bytes served instead of a file's own (of the same length, as a broken cache would).
        down: every request is answered 503.
        delay: seconds before each answer.
        sent: bytes of file bodies sent so far.
        rate: bytes a second of one connection; 0: as fast as it goes.
        ranges: whether a range is answered as one; otherwise the whole file comes.
        mirror: files are answered by a redirect to this address.
        fault: called with the path of each request but looks; says what goes wrong with its answer.
        fault_of_looks: the same for looks.
        moved: name → the folder (under `root`) that its branch has moved to; its old commit is served still.
        refs: further names of the branch, such as refs/pr/1.
        tokens: the Authorization header of each request, in order.
    """

    daemon_threads = True

    def __init__(self, root: Path, port: int = 0, token: str = "hf_test") -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.root, self.token = root, token
        self.requests: list[str] = []
        self.break_next = 0
        self.lie: dict[str, bytes] = {}
        self.down = False
        self.delay = 0.0
        self.sent = 0
        self.rate = 0
        self.ranges = True
        self.mirror = ""
        self.fault: Callable[[str], Fault] = lambda _: NO_FAULT
        self.fault_of_looks: Callable[[str], Fault] = lambda _: NO_FAULT
        self.refs: set[str] = set()
        self.moved: dict[str, str] = {}
        self.tokens: list[str] = []
        self._sent_lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of who hangs up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def count(self, sent: int) -> None:
        with self._sent_lock:
            self.sent += sent

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files_fetched(self) -> list[str]:
        return [line.rpartition("/")[2] for line in self.requests if line.startswith("GET") and "/resolve/" in line]

    def files_looked_at(self) -> list[str]:
        return [line.rpartition("/")[2] for line in self.requests if line.startswith("LOOK")]

    def repository(self, name: str) -> Repository | None:
        folder = self.root / name
        valid = re.fullmatch(r"(datasets/)?[\w.-]+(/[\w.-]+)?", name) and ".." not in name
        return Repository(name, folder) if valid and folder.is_dir() else None

    def __enter__(self) -> HubServer:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fault = NO_FAULT
    look = False

    @property
    def hub(self) -> HubServer:
        return cast(HubServer, self.server)

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.look = "purpose/look" in self.headers.get("User-Agent", "")
        self.hub.requests.append(f"{'LOOK' if self.look else self.command} {path}")
        self.hub.tokens.append(self.headers.get("Authorization", ""))
        time.sleep(self.hub.delay)
        self.fault = (self.hub.fault_of_looks if self.look else self.hub.fault)(path)
        if self.hub.down:
            self._error(503, "", "down for the test")
        elif self.fault.status:
            self._error(self.fault.status, "", "a fault of the test")
        elif self.fault.redirect or (self.hub.mirror and "/resolve/" in path):
            self._redirect(self.fault.redirect or self.hub.mirror + self.path)
        elif self.fault.page is not None:
            self._page(self.fault.page)
        elif match := re.fullmatch(r"/api/(?:models/|(?=datasets/))(.+?)(?:/(revision|tree)/(.+?))?/?", path):
            name, what, revision = match.groups()
            if repository := self._repository(name, revision or "main"):
                self._json(repository.tree() if what == "tree" else repository.info())
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            name, revision, file = match.groups()
            if repository := self._repository(name, revision):
                self._file(repository, file)
        else:
            self._error(404, "", "no such page")

    def _repository(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repository(name)
        if repository is None:
            self._error(401, "RepoNotFound", "Repository not found")
        elif repository.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._error(401, "GatedRepo", "Access to this model is restricted")
        else:
            moved = self.hub.moved.get(name)
            branch = Repository(name, self.hub.root / moved) if moved else repository
            for one in (branch, repository):
                if revision == one.commit or (one is branch and revision in {"main", *self.hub.refs}):
                    return one
            self._error(404, "RevisionNotFound", "Invalid rev id")
        return None

    def _file(self, repository: Repository, name: str) -> None:
        if name not in repository.hashes:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        blob, sha256 = repository.hashes[name]
        path = repository.folder / name
        size = int(path.stat().st_size * self.fault.short)
        start, stop, status = 0, size, 200
        if self.hub.ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            start, status = int(match[1]), 206
            stop = min(size, int(match[2]) + 1) if match[2] else size
            if start >= size:
                self._error(416, "", "no such range")
                return
        self.send_response(status)
        if self.fault.etag is not None:
            self.send_header("ETag", f'"{self.fault.etag or sha256 or blob}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Accept-Ranges", "bytes")
        if sha256:
            self.send_header("X-Linked-ETag", f'"{sha256}"')
            self.send_header("X-Linked-Size", str(size))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.fault.cut
        if self.hub.break_next > 0 and sha256 and not self.look:
            self.hub.break_next -= 1
            cut = 0.5
        self._body(path, self.hub.lie.get(name), start, stop, start + int((stop - start) * cut))
        if cut < 1.0:
            self.close_connection = True

    def _body(self, path: Path, lie: bytes | None, start: int, stop: int, end: int) -> None:
        """Sends the bytes from `start` to `end` of what was asked for up to `stop`."""
        self.wfile.flush()
        with path.open("rb") as file, contextlib.suppress(ConnectionError):  # who asked has gone
            if lie is None and self.fault == NO_FAULT and not self.hub.rate:
                self.hub.count(self.connection.sendfile(file, start, end - start) if end > start else 0)
                return
            file.seek(start)
            data = bytearray(lie[start:end] if lie is not None else file.read(end - start))
            if self.fault.flip is not None and data:
                data[min(len(data) - 1, int((stop - start) * self.fault.flip))] ^= 1
            for at in range(0, len(data), CHUNK):
                part = data[at : at + CHUNK]
                self.wfile.write(part)
                self.hub.count(len(part))
                time.sleep(self.fault.drip + (len(part) / self.hub.rate if self.hub.rate else 0.0))

    def _redirect(self, address: str) -> None:
        self.send_response(302)
        self.send_header("Location", address)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _page(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _error(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        if self.fault.retry_after:
            self.send_header("Retry-After", self.fault.retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()


def serve(kind: type[HubServer], description: str, *settings: str) -> None:
    """Serves the folder that the command line names until interrupted; prints the settings that a client needs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8091)
    given = parser.parse_args()
    with kind(given.folder, given.port) as server:
        print(f"HF_ENDPOINT={server.endpoint}", *settings, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    serve(HubServer, "A local hub for tests.")
