"""HTTP for bulk: ranges of files over connections that stay open, one of each thread to each host.

The standard library's client, not the one under huggingface_hub: that hands out 64 kB at a time, which costs 1.7 s of
processor time a gigabyte where this costs 0.1 s (see docs/adr/0016). What a hub says comes through its own client.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import string
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote, urljoin, urlsplit

from evomerge_models.hub.patience import Broken

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 8
_REDIRECT_BYTES = 1 << 16
_STALL_SECONDS = 30.0
_STALL_RATE = 1024
"""Bytes a second; a connection that brings less for `_STALL_SECONDS` is given up."""

Origin = tuple[str, str, int]


class Answer:
    """A response whose body is still to be read.

    Attributes:
        url: where it came from, after redirects; it may be signed, so it must reach no log.
        same_host: the hub itself answered, not a host that it sent us to.

    """

    def __init__(self, response: http.client.HTTPResponse, url: str, *, same_host: bool) -> None:
        self._response = response
        self.url, self.same_host = url, same_host
        self.status = response.status
        self.headers: Mapping[str, str] = {key.lower(): value for key, value in response.getheaders()}
        self._count, self._seconds = 0, 0.0

    def read(self, count: int) -> bytes:
        """Reads what is there, up to `count` bytes; empty at the end.

        Raises:
            Broken: the connection failed, or brings next to nothing.

        """
        began = time.monotonic()
        try:
            data = self._response.read1(count)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Broken(f"the connection broke ({_name(error)})") from error
        self._count += len(data)
        self._seconds += time.monotonic() - began
        if self._seconds > _STALL_SECONDS and self._count < self._seconds * _STALL_RATE:
            raise Broken(f"the connection brought {self._count} bytes in {self._seconds:.0f} s")
        return data

    @property
    def is_complete(self) -> bool:
        """Tells whether the body has been read, so that the connection can serve again."""
        if self._response.length == 0 and not self._response.isclosed():
            self._response.read()
        return self._response.isclosed()


class Wire:
    """Connections to a hub and to the hosts that it sends us to.

    Args:
        headers: of every request; `authorization` is for the hub's own host alone.
        endpoint: the hub's URL.
        timeout: seconds without a byte after which a connection counts as broken.

    """

    def __init__(self, headers: Mapping[str, str], endpoint: str, timeout: float) -> None:
        self._headers = {key.lower(): value for key, value in headers.items()} | {"accept-encoding": "identity"}
        self._hub = _origin(endpoint)
        self._timeout = timeout
        self._local = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._trust: ssl.SSLContext | None = None

    @contextlib.contextmanager
    def get(self, url: str, first: int, last: int) -> Iterator[Answer]:
        """Asks for the bytes `first` … `last` of a file, following redirects.

        Raises:
            Broken: no connection, no answer, or a circle of redirects.

        """
        location = ""
        for _ in range(_MAX_REDIRECTS):
            try:
                url = quote(urljoin(url, location), safe=string.punctuation)
                origin = _origin(url)
            except ValueError as error:
                raise Broken("the hub sends us to something that is no URL") from error
            answer = self._ask(url, origin, f"bytes={first}-{last}")
            if answer.status not in _REDIRECTS or "location" not in answer.headers:
                try:
                    yield answer
                finally:
                    if not answer.is_complete:
                        self._drop(origin)
                return
            answer.read(_REDIRECT_BYTES)
            if not answer.is_complete:
                self._drop(origin)
            location = answer.headers["location"]
        raise Broken(f"the hub sends us from one address to the next ({_MAX_REDIRECTS} times)")

    def abort(self) -> None:
        """Breaks every connection, also those that other threads read from."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError, AttributeError):
                    connection.sock.shutdown(2)

    def close(self) -> None:
        """Closes every connection; no thread may be reading."""
        for connection in self._open:
            connection.close()
        self._open.clear()

    def _ask(self, url: str, origin: Origin, wanted: str) -> Answer:
        headers = {**self._headers, "range": wanted}
        if origin != self._hub:
            headers.pop("authorization", None)
        target = urlsplit(url)
        path = f"{target.path or '/'}?{target.query}" if target.query else target.path or "/"
        for last_try in (False, True):
            connection, is_new, prefix, extra = self._connection(origin)
            try:
                connection.request("GET", f"{prefix}{path}", headers=headers | extra)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._drop(origin)
                idle_too_long = isinstance(error, http.client.RemoteDisconnected | ConnectionError)
                if idle_too_long and not is_new and not last_try:
                    continue  # the server had closed it meanwhile
                raise Broken(f"the hub does not answer ({_name(error)})") from error
            return Answer(response, url, same_host=origin == self._hub)
        raise AssertionError("the second try returns or raises")

    def _connection(self, origin: Origin) -> tuple[http.client.HTTPConnection, bool, str, dict[str, str]]:
        """This thread's connection to a host: it, whether it is new, and for a proxy a prefix of paths and headers."""
        held: dict[Origin, http.client.HTTPConnection] = self._local.__dict__.setdefault("held", {})
        proxy = _proxy(origin)
        plain_proxy = proxy is not None and origin[0] == "http"
        prefix = f"http://{_authority(origin)}" if plain_proxy else ""
        extra = proxy[1] if proxy is not None and plain_proxy else {}
        if origin in held:
            return held[origin], False, prefix, extra
        scheme, host, port = origin
        through = proxy[0] if proxy is not None else (host, port)
        connection: http.client.HTTPConnection
        if scheme == "https":
            connection = http.client.HTTPSConnection(*through, timeout=self._timeout, context=self._context())
            if proxy is not None:
                connection.set_tunnel(host, port, proxy[1])
        else:
            connection = http.client.HTTPConnection(*through, timeout=self._timeout)
        held[origin] = connection
        with self._lock:
            self._open.add(connection)
        return connection, True, prefix, extra

    def _context(self) -> ssl.SSLContext:
        """The authorities that huggingface_hub's client trusts too."""
        import httpx2

        with self._lock:
            self._trust = self._trust or httpx2.create_ssl_context()
            return self._trust

    def _drop(self, origin: Origin) -> None:
        connection = self._local.held.pop(origin, None)
        if connection is not None:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def _origin(url: str) -> Origin:
    """Scheme, host and port of a URL.

    Raises:
        ValueError: it is none that we speak to.

    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected http://host or https://host")
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _authority(origin: Origin) -> str:
    _, host, port = origin
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _proxy(origin: Origin) -> tuple[tuple[str, int], dict[str, str]] | None:
    """Address and headers of the proxy that the environment names for a host (HTTPS_PROXY, NO_PROXY and so on)."""
    proxies = urllib.request.getproxies()
    url = proxies.get(origin[0]) or proxies.get("all")
    if not url or urllib.request.proxy_bypass(origin[1]):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise Broken(f"the proxy of {origin[0]} is none that files are fetched through (http://host:port)")
    headers = {}
    if parts.username:
        import base64

        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["proxy-authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    return (parts.hostname, parts.port or 80), headers


def _name(error: BaseException) -> str:
    """What went wrong, without an address: that of a private file is signed."""
    if isinstance(error, TimeoutError):
        return "no byte came for too long"
    text = error.strerror if isinstance(error, OSError) and error.strerror else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
