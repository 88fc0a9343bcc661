"""Free TCP ports on loopback."""

from __future__ import annotations

import random
import socket

from evomerge_common.errors import Unavailable

HOST = "127.0.0.1"
FIRST, LAST = 20_000, 32_000
"""Below the range that Linux and macOS give to outgoing connections: a port chosen here is not taken by one of those
between the choice and the service's bind."""


def is_free(port: int) -> bool:
    """Tells whether a server could bind the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_ports(count: int, *, preferred: tuple[int, ...] = ()) -> list[int]:
    """Finds so many different free ports: the preferred ones (0: none) where they are free, others for the rest.

    Raises:
        Unavailable: none is left.

    """
    chosen: list[int] = []
    # The system's own randomness: two stacks started at the same moment must not try the same ports.
    candidates = iter(random.SystemRandom().sample(range(FIRST, LAST), 2_000))
    for index in range(count):
        wanted = preferred[index] if index < len(preferred) else 0
        if wanted and wanted not in chosen and is_free(wanted):
            chosen.append(wanted)
            continue
        for port in candidates:
            if port not in chosen and is_free(port):
                chosen.append(port)
                break
        else:
            raise Unavailable(f"no free port on {HOST} between {FIRST} and {LAST}; stop what holds them and try again")
    return chosen
