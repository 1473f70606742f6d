"""A copy of each piece on another node, sent over TCP by a thread beside training.

One exchange: the receiver sends a nonce; the sender a header (the piece's record, with size and digest) and
an HMAC of nonce and header under the run's secret; then the file's bytes; the receiver answers with an HMAC
of nonce and digest once the piece is whole under its name. So nobody without the secret can leave a piece,
and what was changed on the way is dropped. Nothing is encrypted, like the traffic of the training itself.
"""

import hashlib
import hmac
import os
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eosin.errors import PermanentError, TransientError
from eosin.training.checkpoints.shm import Piece, ShmFolder

_NONCE_BYTES = MAC_BYTES = 32
_MAX_HEADER_BYTES = 64 * 1024
_CHUNK_BYTES = 4 * 2**20
_TIMEOUT_S = 30.0
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Address:
    """Where a process takes pieces."""

    host: str
    port: int


class Receiver:
    """Takes pieces for this node's folder until closed. `max_bytes`: of a piece, so that nobody's mistake
    fills the memory."""

    def __init__(self, folder: ShmFolder, secret: str, max_bytes: int, host: str) -> None:
        self._folder = folder
        self._key = secret.encode()
        self._max_bytes = max_bytes
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family)
        self.address = Address(host, self._socket.getsockname()[1])
        threading.Thread(target=self._serve, name="eosin-receiver", daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with connection, suppress(OSError, PermanentError):
                connection.settimeout(_TIMEOUT_S)
                self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        nonce = os.urandom(_NONCE_BYTES)
        connection.sendall(nonce)
        (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
        if length > _MAX_HEADER_BYTES:
            return
        header, mac = _read(connection, length), _read(connection, MAC_BYTES)
        if not hmac.compare_digest(mac, _mac(self._key, nonce, header)):
            return
        piece = Piece.from_json(header, source="what a neighbour sent")
        if not 0 < piece.size_bytes <= self._max_bytes:
            return
        self._keep(connection, piece)
        connection.sendall(_mac(self._key, nonce, piece.sha256.encode()))

    def _keep(self, connection: socket.socket, piece: Piece) -> None:
        """Raises `PermanentError` where the bytes are not those of the header: nothing is kept."""
        part = self._folder.path / f"{piece.name}.received.{os.getpid()}.part"
        try:
            self._folder.require_room(piece.size_bytes)
            if _receive(connection, part, piece.size_bytes) != piece.sha256:
                raise PermanentError(f"{piece.name} was changed on the way")
            self._folder.adopt(piece, part)
            self._folder.prune(piece.kept)
        finally:
            part.unlink(missing_ok=True)


def send(piece: Piece, path: Path, to: Address, secret: str) -> None:
    """Leave the piece in the file `path` with a neighbour. Raises `TransientError` where it is not taken."""
    key = secret.encode()
    try:
        with socket.create_connection((to.host, to.port), timeout=_TIMEOUT_S) as connection:
            nonce, header = _read(connection, _NONCE_BYTES), piece.to_json()
            connection.sendall(_LENGTH.pack(len(header)) + header + _mac(key, nonce, header))
            with path.open("rb") as file:
                connection.sendfile(file)
            answer = _read(connection, MAC_BYTES)
    except OSError as error:
        raise _not_taken(piece, to, str(error)) from error
    if not hmac.compare_digest(answer, _mac(key, nonce, piece.sha256.encode())):
        raise _not_taken(piece, to, "its answer is not that of a process of this run")


def own_host(towards: str, port: int) -> str:
    """The address of this node by which `towards`, another one or itself, reaches it."""
    family = socket.getaddrinfo(towards, port, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, port))
        return str(probe.getsockname()[0])


def neighbour_of(rank: int, hosts: list[str]) -> int | None:
    """The rank that keeps a copy for `rank`: at the same place on the next node. `hosts`: of each rank.
    None where all are on one."""
    nodes = sorted(set(hosts))
    if len(nodes) < 2:
        return None
    members = {node: [r for r, host in enumerate(hosts) if host == node] for node in nodes}
    own = members[hosts[rank]]
    following = members[nodes[(nodes.index(hosts[rank]) + 1) % len(nodes)]]
    return following[own.index(rank) % len(following)]


def _not_taken(piece: Piece, to: Address, why: str) -> TransientError:
    return TransientError(f"the neighbour at {to.host}:{to.port} did not take step {piece.step}: {why}")


def _mac(key: bytes, nonce: bytes, message: bytes) -> bytes:
    return hmac.digest(key, nonce + message, "sha256")


def _read(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise ConnectionError("the connection ended early")
        data += more
    return bytes(data)


def _receive(connection: socket.socket, path: Path, length: int) -> str:
    """Write `length` bytes to `path`; their SHA-256."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(_CHUNK_BYTES, length)))
    with path.open("wb") as file:
        while length:
            count = connection.recv_into(buffer[: min(len(buffer), length)])
            if not count:
                raise ConnectionError("the connection ended early")
            digest.update(buffer[:count])
            file.write(buffer[:count])
            length -= count
    return digest.hexdigest()
