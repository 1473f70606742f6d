"""A neighbour keeps whole copies for processes of the run, and nothing for anybody else."""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from eosin.errors import TransientError
from eosin.training.checkpoints import neighbour
from eosin.training.checkpoints.neighbour import Address, Receiver, neighbour_of, own_host, send
from eosin.training.checkpoints.shm import Piece, ShmFolder

SECRET = "of this run"
PIECE = Piece(step=7, index=1, num_pieces=2, world="c" * 32, config_digest="d")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[ShmFolder, ShmFolder]:
    found = ShmFolder(tmp_path / "ours"), ShmFolder(tmp_path / "theirs")
    for folder in found:
        folder.path.mkdir()
    return found


@pytest.fixture
def receiver(folders: tuple[ShmFolder, ShmFolder]) -> Iterator[Receiver]:
    found = Receiver(folders[1], SECRET, 10_000, "127.0.0.1")
    yield found
    found.close()


@pytest.fixture
def kept(folders: tuple[ShmFolder, ShmFolder]) -> Piece:
    return folders[0].write(PIECE, {"student/w": torch.randn(30, 40)})


def test_a_piece_arrives_with_its_bits(
    folders: tuple[ShmFolder, ShmFolder], receiver: Receiver, kept: Piece
) -> None:
    ours, theirs = folders
    for _ in range(2):  # a restart sends again what is there already
        send(kept, ours.file(kept), receiver.address, SECRET)
    assert theirs.pieces() == [kept]
    assert torch.equal(theirs.load(kept)["student/w"], ours.load(kept)["student/w"])
    assert not list(theirs.path.glob("*.part"))


def test_who_does_not_know_the_secret_leaves_nothing(
    folders: tuple[ShmFolder, ShmFolder], receiver: Receiver, kept: Piece
) -> None:
    with pytest.raises(TransientError, match="did not take step 7"):
        send(kept, folders[0].file(kept), receiver.address, "of another run")
    assert list(folders[1].path.iterdir()) == []
    send(kept, folders[0].file(kept), receiver.address, SECRET)
    assert folders[1].pieces() == [kept]


def test_a_receiver_that_does_not_know_the_secret_is_noticed(
    folders: tuple[ShmFolder, ShmFolder], kept: Piece
) -> None:
    impostor = socket.create_server(("127.0.0.1", 0))
    address = Address("127.0.0.1", impostor.getsockname()[1])

    import threading

    def answer() -> None:
        connection, _ = impostor.accept()
        with connection:
            connection.sendall(os.urandom(32))
            (length,) = struct.unpack(">I", connection.recv(4, socket.MSG_WAITALL))
            connection.recv(length + 32 + kept.size_bytes, socket.MSG_WAITALL)
            connection.sendall(os.urandom(32))

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(TransientError, match="not that of a process of this run"):
        send(kept, folders[0].file(kept), address, SECRET)
    thread.join(10)
    impostor.close()


def test_what_was_changed_on_the_way_is_dropped(
    folders: tuple[ShmFolder, ShmFolder], receiver: Receiver, kept: Piece
) -> None:
    path = folders[0].file(kept)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(TransientError):
        send(kept, path, receiver.address, SECRET)
    assert list(folders[1].path.iterdir()) == []


def test_a_piece_larger_than_ours_is_refused(
    folders: tuple[ShmFolder, ShmFolder], receiver: Receiver
) -> None:
    large = folders[0].write(PIECE, {"student/w": torch.zeros(100, 100)})
    with pytest.raises(TransientError):
        send(large, folders[0].file(large), receiver.address, SECRET)
    assert list(folders[1].path.iterdir()) == []


@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.1\r\n\r\n", struct.pack(">I", 2**31), b"\0" * 200])
def test_noise_does_not_stop_it(
    folders: tuple[ShmFolder, ShmFolder],
    receiver: Receiver,
    kept: Piece,
    noise: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neighbour, "_TIMEOUT_S", 1.0)
    with socket.create_connection((receiver.address.host, receiver.address.port)) as connection:
        connection.sendall(noise)
    send(kept, folders[0].file(kept), receiver.address, SECRET)
    assert folders[1].pieces() == [kept]


def test_a_neighbour_that_is_gone_is_a_transient_error(
    folders: tuple[ShmFolder, ShmFolder], receiver: Receiver, kept: Piece
) -> None:
    receiver.close()
    with pytest.raises(TransientError, match="did not take"):
        send(kept, folders[0].file(kept), receiver.address, SECRET)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ([0], [None]),
        ([0, 0], [None, None]),
        ([0, 1], [1, 0]),
        ([0, 0, 1, 1, 2, 2], [2, 3, 4, 5, 0, 1]),
        ([0, 0, 0, 1], [3, 3, 3, 0]),
    ],
)
def test_the_copy_is_on_another_node(hosts: list[int], expected: list[int | None]) -> None:
    assert [neighbour_of(rank, [str(host) for host in hosts]) for rank in range(len(hosts))] == expected


def test_own_address_is_the_one_that_reaches_the_other() -> None:
    assert own_host("127.0.0.1", 29400) == "127.0.0.1"
