"""The small local hub of `hub_server`, which takes uploads too: what the real client needs to push, and no Xet.

`PYTHONPATH=tests python -m helpers.hub_writer FOLDER --port N` serves FOLDER/org/name as `hub_server` does; with
HF_ENDPOINT=http://127.0.0.1:N and HF_TOKEN=hf_test, `evomerge push` writes there. Tokens: `hf_test` writes, `hf_read`
only reads; both belong to `me`, who is in the organisation `org`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import yaml

from helpers.hub_server import LFS_SUFFIXES, HubServer, Repository, _Handler, serve

TOKENS = {"hf_test": "write", "hf_read": "read"}
USER, ORGANISATIONS = "me", ("org",)
SIGNATURE = "X-Amz-Signature=secret0signature"
REGULAR_BYTES = 10_000_000
"""A larger file goes to LFS, whatever its name."""


class WritableHub(HubServer):
    """Serves and takes repositories.

    Attributes:
        private: names of repositories that only who has a token sees.
        part_bytes: a larger LFS file is asked for in parts of this size.
        received: SHA-256 of an LFS file → bytes of it that were sent, over all tries.
        fail_after: so many whole LFS files are taken; what follows is answered 400. None: no end.
        stall: set: a PUT that comes in waits for it. None: none waits.
        commits: (repository, branch, summary, operations) of each commit.
    """

    def __init__(self, root: Path, port: int = 0) -> None:
        super().__init__(root, port)
        self.RequestHandlerClass = _Writer
        self.private: set[str] = set()
        self.part_bytes = 5_000_000
        self.received: dict[str, int] = {}
        self.fail_after: int | None = None
        self.stall: threading.Event | None = None
        self.commits: list[tuple[str, str, str, list[dict[str, Any]]]] = []
        self.parts: dict[str, dict[int, bytes]] = {}
        self.guard = threading.Lock()

    def __enter__(self) -> WritableHub:
        super().__enter__()
        return self

    def branch(self, name: str, branch: str) -> Path:
        return self.root / name if branch == "main" else self.root / ".branches" / branch / name

    def stored(self, sha256: str) -> Path:
        return self.root / ".lfs" / sha256

    def written(self) -> list[str]:
        """The requests that were to change something."""
        return [line for line in self.requests if not line.startswith(("GET", "HEAD"))]


class _Writer(_Handler):
    @property
    def hub(self) -> WritableHub:
        return cast(WritableHub, self.server)

    def do_POST(self) -> None:  # noqa: N802
        self._take()

    def do_PUT(self) -> None:  # noqa: N802
        self._take()

    @property
    def role(self) -> str:
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "), "")

    def _repository(self, name: str, revision: str) -> Repository | None:
        if name in self.hub.private and not self.role:
            self._error(401, "RepoNotFound", "Repository not found")
            return None
        folder = self.hub.branch(name, revision)
        if revision != "main" and folder.is_dir():
            return Repository(name, folder)
        return super()._repository(name, revision)

    def _json(self, value: object, status: int = 200) -> None:
        if isinstance(value, dict) and value.get("modelId") in self.hub.private:
            value = {**value, "private": True}
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _answer(self) -> None:
        if urlsplit(self.path).path == "/api/whoami-v2" and not self.hub.down:
            self.hub.requests.append("GET /api/whoami-v2")
            if not self.role:
                self._error(401, "", "Invalid credentials in Authorization header")
                return
            self._json(
                {"type": "user", "name": USER, "orgs": [{"name": one} for one in ORGANISATIONS],
                 "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": self.role}}}
            )  # fmt: skip
            return
        super()._answer()

    # ---- what changes something ----

    def _take(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.down:
            self._error(503, "", "down for the test")
            return
        if match := re.fullmatch(r"/upload/([0-9a-f]{64})(?:/(\d+))?", path):
            self._upload(match[1], int(match[2] or 0))
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if path == "/api/validate-yaml":
            errors = [{"message": text} for text in yaml_errors(json.loads(body)["content"])]
            self._json({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif match := re.fullmatch(r"/complete/([0-9a-f]{64})", path):
            self._complete(match[1], json.loads(body))
        elif self.role != "write":
            self._error(403 if self.role else 401, "", "Forbidden" if self.role else "Invalid username or password.")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/(.+?)\.git/info/lfs/objects/batch", path):
            self._json({"transfer": "basic", "objects": [self._lfs(one) for one in json.loads(body)["objects"]]})
        elif match := re.fullmatch(r"/(.+?)\.git/info/lfs/verify", path):
            self._json({}, 200 if self.hub.stored(json.loads(body)["oid"]).exists() else 404)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path):
            {"preupload": self._preupload, "commit": self._commit, "branch": self._branch}[match[2]](
                match[1], match[3], body
            )
        else:
            self._error(404, "", "no such page")

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or USER
        name = f"{owner}/{asked['name']}"
        if owner not in (USER, *ORGANISATIONS):
            self._error(403, "", f"You don't have the rights to create a model under the namespace {owner!r}")
        elif (self.hub.root / name).exists():
            self._json({"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"}, 409)
        else:
            (self.hub.root / name).mkdir(parents=True)
            (self.hub.root / name / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            if asked.get("visibility") == "private" or asked.get("private"):
                self.hub.private.add(name)
            self._json({"url": f"{self.hub.endpoint}/{name}", "name": name})

    def _branch(self, name: str, branch: str, _: bytes) -> None:
        shutil.copytree(self.hub.branch(name, "main"), self.hub.branch(name, branch))
        self._json({})

    def _preupload(self, name: str, branch: str, body: bytes) -> None:
        repository = self._repository(name, branch)
        if repository is None:
            return
        files = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(LFS_SUFFIXES) or file["size"] > REGULAR_BYTES
            blob, sha256 = repository.hashes.get(file["path"], (None, None))
            files.append(
                {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False,
                 "oid": sha256 or blob}
            )  # fmt: skip
        self._json({"files": files})

    def _lfs(self, asked: dict[str, Any]) -> dict[str, Any]:
        sha256, size = asked["oid"], asked["size"]
        answer: dict[str, Any] = {"oid": sha256, "size": size, "authenticated": True}
        if self.hub.stored(sha256).exists():
            return answer
        place, whole = f"{self.hub.endpoint}/upload/{sha256}", size <= self.hub.part_bytes
        upload: dict[str, Any] = {"href": f"{place}?{SIGNATURE}"}
        if not whole:
            count = -(-size // self.hub.part_bytes)
            parts = {f"{number:05}": f"{place}/{number}?{SIGNATURE}" for number in range(1, count + 1)}
            upload = {
                "href": f"{self.hub.endpoint}/complete/{sha256}?{SIGNATURE}",
                "header": {"chunk_size": str(self.hub.part_bytes), **parts},
            }
        return {**answer, "actions": {"upload": upload}}

    def _upload(self, sha256: str, part: int) -> None:
        if self.hub.stall is not None:
            self.hub.stall.wait(60)
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with self.hub.guard:
            self.hub.received[sha256] = self.hub.received.get(sha256, 0) + len(data)
            refused = self.hub.fail_after == 0
            if self.hub.fail_after and not part:
                self.hub.fail_after -= 1
        if urlsplit(self.path).query != SIGNATURE:
            self._error(403, "", "SignatureDoesNotMatch")
        elif refused:
            self._error(400, "", "no more for the test")
        elif part:
            self.hub.parts.setdefault(sha256, {})[part] = data
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._store(sha256, data)

    def _complete(self, sha256: str, asked: dict[str, Any]) -> None:
        parts = self.hub.parts.get(sha256, {})
        if [one["partNumber"] for one in asked["parts"]] != sorted(parts):
            self._error(400, "", "InvalidPart")
            return
        self._store(sha256, b"".join(parts[number] for number in sorted(parts)))

    def _store(self, sha256: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != sha256:
            self._error(400, "", "the content is not what its name says")
            return
        self.hub.stored(sha256).parent.mkdir(exist_ok=True)
        self.hub.stored(sha256).write_bytes(data)
        self._json({})

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        repository = self._repository(name, branch)
        if repository is None:
            return
        header, *operations = [json.loads(line) for line in body.splitlines()]
        parent = header["value"].get("parentCommit")
        if parent and parent != repository.commit:
            self._error(412, "", "A commit has happened since. Please refresh and try again.")
            return
        missing = [one for one in operations if one["key"] == "lfsFile" and not self._has(one["value"]["oid"])]
        if not operations or missing:
            self._error(400, "", "nothing to commit, or an LFS file that was never sent")
            return
        for operation in operations:
            self._apply(repository.folder / operation["value"]["path"], operation["key"], operation["value"])
        self.hub.commits.append((name, branch, header["value"]["summary"], operations))
        after = Repository(name, repository.folder).commit
        url = f"{self.hub.endpoint}/{name}/commit/{after}"
        self._json({"success": True, "commitOid": after, "commitUrl": url, "hookOutput": ""})

    def _has(self, sha256: str) -> bool:
        return self.hub.stored(sha256).exists()

    def _apply(self, path: Path, key: str, value: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if key == "file":
            path.write_bytes(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            shutil.copyfile(self.hub.stored(value["oid"]), path)
        elif key == "deletedFile":
            path.unlink()
        else:
            raise AssertionError(f"unknown operation {key}")


# ---- the metadata that the Hub takes, as strictly as is known ----

_RELATIONS = ("adapter", "finetune", "merge", "quantized")
_PIPELINES = (
    "text-generation", "fill-mask", "text-classification", "token-classification", "question-answering",
    "feature-extraction", "sentence-similarity", "image-text-to-text", "summarization", "translation",
)  # fmt: skip
_LICENCES = (
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "gemma", "llama2", "llama3", "llama3.1",
    "llama3.2", "llama3.3", "openrail", "isc", "unlicense", "other", "unknown",
)  # fmt: skip


def yaml_errors(content: str) -> list[str]:
    """What the Hub would say against a card's metadata."""
    match = re.match(r"\A---[ \t]*\n(.*?)\n---[ \t]*(\n|\Z)", content, re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata must be an object"]
    return list(_errors_of(data))


def _errors_of(data: dict[str, Any]) -> Iterator[str]:
    for key in ("tags", "language", "base_model", "datasets", "metrics"):
        for index, one in enumerate(_listed(data.get(key))):
            if not isinstance(one, str) or not one:
                yield f'"{key}[{index}]" must be a string'
    for one in _listed(data.get("base_model")):
        if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(one)):
            yield f'"base_model" with value "{one}" is not valid. Use a model id from https://hf.co/models.'
    for one in _listed(data.get("language")):
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", str(one)):
            yield f'"language" with value "{one}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code.'
    for key, valid in (
        ("base_model_relation", _RELATIONS), ("pipeline_tag", _PIPELINES), ("license", _LICENCES)
    ):  # fmt: skip
        if key in data and data[key] not in valid:
            yield f'"{key}" must be one of [{", ".join(valid)}]'
    if ("license_name" in data) != (data.get("license") == "other"):
        yield '"license_name" belongs to "license: other"'
    if "base_model_relation" in data and "base_model" not in data:
        yield '"base_model_relation" needs "base_model"'
    if not isinstance(data.get("library_name", ""), str):
        yield '"library_name" must be a string'
    yield from _index_errors(data.get("model-index", []))


def _index_errors(index: Any) -> Iterator[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index):
        where = f"model-index[{i}]"
        yield from _missing(model, where, {"name": str, "results": list})
        for j, result in enumerate(model.get("results", [])):
            at = f"{where}.results[{j}]"
            yield from _missing(result.get("task", {}), f"{at}.task", {"type": str})
            yield from _missing(result.get("dataset", {}), f"{at}.dataset", {"name": str, "type": str})
            yield from _missing(result, at, {"metrics": list})
            if unknown := set(result.get("dataset", {})) - {"name", "type", "config", "split", "revision", "args"}:
                yield f'"{at}.dataset.{min(unknown)}" is not allowed'
            if not re.fullmatch(r"[0-9a-f]{40}", result.get("dataset", {}).get("revision", "0" * 40)):
                yield f'"{at}.dataset.revision" is no commit'
            for k, metric in enumerate(result.get("metrics", [])):
                yield from _missing(metric, f"{at}.metrics[{k}]", {"type": str, "value": (int, float, str)})
                if "verified" in metric:
                    yield f'"{at}.metrics[{k}].verified" is set by the Hub alone'


def _missing(value: Any, where: str, keys: dict[str, Any]) -> Iterator[str]:
    for key, kind in keys.items():
        if not isinstance(value, dict) or key not in value:
            yield f'"{where}.{key}" is required'
        elif not isinstance(value[key], kind) or value[key] in ("", []):
            yield f'"{where}.{key}" is not valid'


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


if __name__ == "__main__":
    serve(WritableHub, "A local hub for tests that takes uploads.", "HF_TOKEN=hf_test")
