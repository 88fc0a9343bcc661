"""Who may use the page: by the name that it is called by, by where a request comes from, and by the token.

On a loopback address only requests for a loopback name are answered, so that no foreign web page reads along by giving
its own name that address (DNS rebinding). What changes anything must come from the page itself (its Origin is the
Host). Where a token is set it is asked for: in the Authorization header, or once in a form, which gives a cookie that
scripts do not see and other sites do not send.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from urllib.parse import urlsplit

from aiohttp import web

COOKIE = "evomerge_page"
SESSION_SECONDS = 12 * 3600
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


class Access:
    """Checks requests.

    Args:
        host: that the page listens on.
        token: that it asks for; empty: none.

    """

    def __init__(self, host: str, token: str) -> None:
        self._token = token
        self.is_loopback = is_loopback(host)

    @property
    def asks(self) -> bool:
        """Tells whether a token is asked for."""
        return bool(self._token)

    @property
    def may_control(self) -> bool:
        """Tells whether whoever gets in may change anything: not on an open network without a token."""
        return self.is_loopback or self.asks

    def check_origin(self, request: web.Request) -> None:
        """Refuses what is not meant for this page, or does not come from it.

        Raises:
            HTTPBadRequest: no Host that could be one.
            HTTPForbidden: another name than a loopback one, or another site's page.

        """
        given = request.headers.get("Host", "")
        found = _HOST.fullmatch(given)
        if found is None or int(found[2] or 0) > 65535:
            raise web.HTTPBadRequest(text="The Host header is no host:port.\n")
        if self.is_loopback and not is_loopback(found[1]):
            raise web.HTTPForbidden(text="This page answers on a loopback name only.\n")
        origin = request.headers.get("Origin")
        changes = request.method not in {"GET", "HEAD"}
        foreign = _netloc(origin or "") != given.lower()
        if (origin is not None and foreign) or (changes and origin is None):
            raise web.HTTPForbidden(text="This request does not come from this page.\n")

    def knows(self, request: web.Request) -> bool:
        """Tells whether a request carries the token, or the cookie of a log-in."""
        if not self._token:
            return True
        header = request.headers.get("Authorization", "")
        return _same(header, f"Bearer {self._token}") or self._is_session(request.cookies.get(COOKIE, ""))

    def log_in(self, given: str, response: web.StreamResponse, *, secure: bool) -> bool:
        """Sets the cookie when what was given is the token; tells whether it is."""
        if not _same(given.strip(), self._token):
            return False
        until = str(int(time.time()) + SESSION_SECONDS)
        response.set_cookie(
            COOKIE, f"{until}.{self._signed(until)}", max_age=SESSION_SECONDS, httponly=True, samesite="Strict",
            secure=secure, path="/",
        )  # fmt: skip
        return True

    def _is_session(self, cookie: str) -> bool:
        until, _, signature = cookie.partition(".")
        return until.isdecimal() and _same(signature, self._signed(until)) and int(until) > time.time()

    def _signed(self, until: str) -> str:
        return hmac.new(self._token.encode(), f"page until {until}".encode(), hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    """Tells whether a name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
