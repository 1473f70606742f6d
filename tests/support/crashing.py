"""A decoder that really dies, or hangs, on tiles chosen by their bytes: see `CRASH`."""

import ctypes
import os
import signal
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from eosin.patches.decoding import parent
from eosin.patches.decoding.child import TilesWorker
from eosin.patches.decoding.decoders import CpuDecoder, EncodedTile, Pixels
from eosin.slides.errors import SlideError

CRASH = "EOSIN_TEST_CRASH"
"""`segv`, `hang`, `kill`; `segv FILE`: only while FILE is there, which goes with the crash; empty: never."""
ONE_IN = 13


def install(monkeypatch: pytest.MonkeyPatch, how: str = "segv") -> None:
    """Let `patches.decoder=nvimgcodec` be the decoder of this module."""
    monkeypatch.setitem(parent.WORKERS, "nvimgcodec", "tests.support.crashing:tiles_worker")
    monkeypatch.setattr(parent, "_LIBRARIES", {})
    monkeypatch.setenv(CRASH, how)


def is_chosen(data: bytes) -> bool:
    """Whether the decoder dies of these bytes."""
    return zlib.crc32(data) % ONE_IN == 0


def tiles_worker(decoder: str) -> TilesWorker:
    cpu = CpuDecoder()

    def decode(tiles: Sequence[EncodedTile]) -> list[Pixels | SlideError]:
        if any(is_chosen(tile.data) for tile in tiles):
            _die(*os.environ.get(CRASH, "").split(" "))
        return cpu.decode(tiles)

    return TilesWorker(decode)


def _die(how: str, only_with: str = "") -> None:
    if only_with:
        if not Path(only_with).exists():
            return
        Path(only_with).unlink()
    if how == "segv":
        ctypes.string_at(0)
    elif how == "hang":
        time.sleep(3600)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
