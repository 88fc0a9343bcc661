"""Settings of a service: every one is an environment variable EVOMERGE_<NAME>."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evomerge_common.errors import EvoMergeException, InvalidInput, did_you_mean
from evomerge_common.runtime.sizes import byte_size
from evomerge_common.runtime.uris import local_path

PREFIX = "EVOMERGE_"
SERVICES = ("downloader", "merger", "evaluator", "selector", "reporter")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("console", "json")
_CACHE = Path("~/.cache/evomerge").expanduser()
_STATE = Path("~/.local/state/evomerge").expanduser()
BACKENDS = ("auto", "torch", "vllm")
FOLDERS = ("model_store", "artifact_store", "state_dir", "score_cache")
"""Settings that name a folder, by its path or its file:// URI."""
SIZES = ("model_store_quota", "download_limit", "log_size")
"""Settings that are a number of bytes, also in words such as 200GB."""
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a service can be told; `scripts/settings` makes docs/settings.md of this text. Secrets stay out of `repr`.

    Attributes:
        nats_url: one or more URLs, comma separated, without user and password.
        nats_user: user at NATS; empty: none.
        nats_password: its password; NATS_PASSWORD_FILE names a file that holds it, which keeps it out of process lists.
        nats_tls_ca: file; the authority that NATS servers are checked against (default: the system's).
        grpc_address: host:port; port 0 takes a free one (written to `<state_dir>/<service>.port`). Each service
            has a default port of its own.
        health_address: a second, plaintext port with the health service alone, for probes that speak no TLS.
        metrics_address: host:port of the Prometheus endpoint; empty: none. Each service has a default port of its own.
        http_address: host:port of the reporter's page. Where a token is set, the page asks for it.
        selector_address: host:port of the selector, by which the reporter's page pauses, resumes, finishes and cancels
            runs; empty: the page only reads. On an open network the page asks for a token first.
        evaluator_address: host:port of an evaluator, by which the page puts a prompt to the champion and the sources;
            empty: it does not. On an open network the page asks for a token first.
        model_store: folder of the source models; this and the other folders may be given as file:// URIs.
        model_store_quota: bytes that the model store may take, such as 200GB: to make room, models go that were used
            longest ago, never one that is pinned or in use. 0: no limit but the disk's. Linked folders take no room.
        download_limit: bytes a second of all downloads of a downloader together, such as 20MB. 0: no limit.
        artifact_store: a folder for candidates' weights, suites and finished models.
        state_dir: folder of what a service writes for itself: its port file, the reporter's database.
        token: bearer token that gRPC calls must carry; TOKEN_FILE names a file that holds it.
        tls_cert, tls_key: files; with them the server speaks TLS, and a client shows them as its own.
        tls_client_ca: file; with it the server asks clients for a certificate (mTLS).
        tls_ca: file; the authority that a client checks servers against (default: tls_client_ca).
        ack_wait: seconds without a heartbeat after which a job is delivered again.
        max_deliver: attempts at a job; then it is a dead letter.
        max_pending: jobs that the work stream holds; more are refused (back-pressure).
        replicas: JetStream replicas of streams and buckets.
        drain_timeout: seconds that a job in work has to finish after SIGTERM; then it is given back.
        shutdown_grace: seconds that open calls have to finish after that.
        log_level: debug, info, warning or error.
        log_format: console, for people; json, a line an event.
        log_file: file that everything on standard error goes to, logs above all; empty: standard error as it is.
        log_size: bytes after which the log file is set aside as .1 (.1 as .2, and what .2 was goes), such as 10MB.
            0: never.
        trace_file: file that spans are appended to, in OTLP's JSON, a line each; empty: none.
            OTEL_EXPORTER_OTLP_ENDPOINT and the other variables of OpenTelemetry send them to a collector.
        device: auto, cpu, cuda, cuda:N or mps.
        backend: what computes scores: auto (vllm where it is installed and there is a GPU), torch or vllm.
        tensor_parallel: GPUs that vLLM spreads one model over, where it is too large for one.
        allow_code: tasks of kind `code` may run what models write (in a sandbox).
        score_timeout: seconds that scoring one candidate may take.
        score_cache: folder where scores are kept for the runs of every stack of this home; empty or "off": scores are
            shared by the runs of one broker alone. An embedded stack has its own default.
        warm: the evaluator imports what scoring needs when it starts, not at its first job; the merger imports torch
            beside its first merges. A run is done sooner, and an idle service holds a few hundred MB. The embedded
            stack of a single run has it on.
        link_models: local model folders are symlinked into the model store, not copied.

    """

    nats_url: str = "nats://127.0.0.1:4222"
    nats_user: str = ""
    nats_password: str = field(default="", repr=False)
    nats_tls_ca: str = ""
    grpc_address: str = "127.0.0.1:0"
    health_address: str = ""
    metrics_address: str = ""
    http_address: str = "127.0.0.1:8080"
    selector_address: str = ""
    evaluator_address: str = ""
    model_store: Path = _CACHE / "models"
    model_store_quota: int = 0
    download_limit: int = 0
    artifact_store: str = str(_CACHE / "artifacts")
    state_dir: Path = _STATE
    token: str = field(default="", repr=False)
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    tls_ca: str = ""
    ack_wait: float = 60.0
    max_deliver: int = 5
    max_pending: int = 10_000
    replicas: int = 1
    drain_timeout: float = 2.0
    shutdown_grace: float = 10.0
    log_level: str = "info"
    log_format: str = "console"
    log_file: str = ""
    log_size: int = 10_000_000
    trace_file: str = ""
    device: str = "auto"
    backend: str = "auto"
    tensor_parallel: int = 1
    allow_code: bool = False
    score_timeout: float = 6 * 3600.0
    score_cache: str = ""
    warm: bool = False
    link_models: bool = True

    def __post_init__(self) -> None:
        for url in self.nats_url.split(","):
            parts = urlsplit(url.strip())
            if parts.scheme not in {"nats", "tls", "ws", "wss"} or not parts.hostname:
                raise InvalidInput(f"{PREFIX}NATS_URL: expected nats://host:port")
            if parts.username or parts.password:
                raise InvalidInput(
                    f"{PREFIX}NATS_URL must not carry a password; set {PREFIX}NATS_USER and {PREFIX}NATS_PASSWORD_FILE"
                )
        addresses = ("grpc_address", "health_address", "metrics_address", "http_address", "selector_address")
        for name in (*addresses, "evaluator_address"):
            _check_address(name, getattr(self, name), optional=name not in {"grpc_address", "http_address"})
        for name, valid in (("log_level", LOG_LEVELS), ("log_format", LOG_FORMATS), ("backend", BACKENDS)):
            if getattr(self, name) not in valid:
                raise _bad(name, getattr(self, name), did_you_mean(getattr(self, name), valid))
        for name in FOLDERS:
            _folder(name, str(getattr(self, name)) or ".")
        device, _, index = self.device.partition(":")
        if device not in DEVICES or (index and not (device == "cuda" and index.isdigit())):
            raise _bad("device", self.device, did_you_mean(device, DEVICES))
        lowest = {
            "ack_wait": 0.1,
            "score_timeout": 0.1,
            "max_deliver": 1,
            "max_pending": 1,
            "replicas": 1,
            "tensor_parallel": 1,
        }
        lowest |= dict.fromkeys(SIZES, 0)
        for name, low in lowest.items():
            if not getattr(self, name) >= low:
                raise _bad(name, getattr(self, name), f"at least {low}")
        for name in ("drain_timeout", "shutdown_grace"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise _bad(name, getattr(self, name), "seconds, zero or more")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise InvalidInput(f"{PREFIX}TLS_CERT and {PREFIX}TLS_KEY belong together: set both or neither")
        if self.tls_client_ca and not self.tls_cert:
            raise InvalidInput(f"{PREFIX}TLS_CLIENT_CA needs {PREFIX}TLS_CERT and {PREFIX}TLS_KEY")
        for name in ("tls_cert", "tls_key", "tls_client_ca", "tls_ca", "nats_tls_ca"):
            if getattr(self, name) and not Path(getattr(self, name)).is_file():
                raise _bad(name, getattr(self, name), "no such file")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, service: str = "") -> Settings:
        """Reads EVOMERGE_* variables; an empty one counts as not set.

        `service` picks the default ports. NATS_PASSWORD_FILE and TOKEN_FILE name files that hold the secret.

        Raises:
            InvalidInput: an unknown variable (names the nearest valid one) or a bad value.
            UnservedScheme: a folder is given as a URI of a scheme that no store serves.

        """
        environ = os.environ if environ is None else environ
        known = {f.name: f for f in fields(cls)}
        files = ("nats_password_file", "token_file")
        values: dict[str, Any] = {}
        if service in SERVICES:
            place = SERVICES.index(service)
            values["grpc_address"] = f"127.0.0.1:{50051 + place}"
            values["metrics_address"] = f"127.0.0.1:{9101 + place}"
        for variable in sorted(environ):
            if not variable.startswith(PREFIX):
                continue
            name, text = variable.removeprefix(PREFIX).lower(), environ[variable]
            if variable != variable.upper() or (name not in known and name not in files):
                valid = [PREFIX + n.upper() for n in (*known, *files)]
                raise InvalidInput(f"unknown setting {variable}; {did_you_mean(variable.upper(), valid)}")
            if not text:
                continue
            if name in files:
                values[name.removesuffix("_file")] = _secret(name, text)
            else:
                values[name] = _parse(name, str(known[name].type), text)
        return cls(**values)

    def to_env(self) -> dict[str, str]:
        """Returns the variables that give these settings; it holds the secrets: for a child's environment alone."""
        default = Settings()
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        return {PREFIX + n.upper(): str(v) for n, v in changed.items() if v != getattr(default, n)}


def _bad(name: str, value: object, what: str) -> InvalidInput:
    return InvalidInput(f"{PREFIX}{name.upper()}={value}: {what}")


def _check_address(name: str, value: str, *, optional: bool) -> None:
    if optional and not value:
        return
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise _bad(name, value, "expected host:port")


def _secret(name: str, path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(name, path, f"cannot be read: {type(error).__name__}") from error


def _parse(name: str, wanted: str, text: str) -> Any:
    if name in FOLDERS:
        folder = _folder(name, text)
        return folder if wanted == "Path" else str(folder)
    if name in SIZES:
        try:
            return byte_size(text)
        except InvalidInput as error:
            raise _bad(name, text, str(error)) from error
    if wanted == "bool":
        word = text.strip().lower()
        if word not in {"true", "false", "1", "0", "yes", "no", "on", "off"}:
            raise _bad(name, text, "expected true or false")
        return word in {"true", "1", "yes", "on"}
    if wanted in {"int", "float"}:
        try:
            return int(text) if wanted == "int" else float(text)
        except ValueError as error:
            raise _bad(name, text, f"expected a{'n integer' if wanted == 'int' else ' number'}") from error
    return text


def _folder(name: str, text: str) -> Path:
    try:
        return local_path(text).expanduser()
    except EvoMergeException as error:
        raise type(error)(f"{PREFIX}{name.upper()}={error}") from error
