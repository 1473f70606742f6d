"""Free TCP ports on loopback."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from eosin.errors import UserError

LOOPBACK = "127.0.0.1"


def free_ports(num_ports: int, *, besides: int | None = None) -> list[int]:
    """`num_ports` different ports that nothing listens on at this moment, none of them `besides`."""
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < num_ports:
            port = held.enter_context(_bound(0)).getsockname()[1]
            if port != besides:
                ports.append(port)
    return ports


def require_free(port: int) -> None:
    """Raises `UserError` where something else has `port`, or the user may not have it."""
    if not 0 < port < 65536:
        raise UserError(
            f"port {port} does not exist", hint="take one of 1024 to 65535, or none to have one found"
        )
    try:
        _bound(port).close()
    except OSError as error:
        raise UserError(
            f"port {port} on {LOOPBACK} cannot be used: {error.strerror}",
            hint="leave the port out to have a free one found, or stop what listens there",
        ) from None


def _bound(port: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # As the server itself does: a connection that lingers from the last run is no hindrance.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((LOOPBACK, port))
    except OSError:
        opened.close()
        raise
    return opened
