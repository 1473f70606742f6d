"""Snapshots in memory that outlives its process: safetensors files in /dev/shm, a JSON marker each.

A file is written beside its place and renamed, its marker after it, so whoever finds a marker finds a
whole piece or notices by its digest. The folder is named after a secret of the run, so that a run begun
anew under an old name never takes up what the old one left.
"""

import fcntl
import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eosin.errors import PermanentError, TransientError
from eosin.records.base import Record

SHM_DIR = "EOSIN_SHM_DIR"
"""Environment variable: where to keep snapshots instead of /dev/shm."""
_PREFIX = "eosin-snapshots-"
_STALE_S = 24 * 3600.0


class Piece(Record):
    """What one process keeps of the state after `step` steps; all of `num_pieces` make it whole."""

    step: int = Field(ge=0)
    """Steps taken."""
    index: int = Field(ge=0)
    """Number of this piece."""
    num_pieces: int = Field(ge=1)
    """Pieces that make up the state."""
    world: str = Field(pattern=r"^[0-9a-f]{8,64}$")
    """Of the processes that took it together: pieces of different worlds never make one state."""
    config_digest: str
    """Of what decides the training."""
    loss: float | None = None
    """Of the last step."""
    size_bytes: int = Field(default=0, ge=0)
    """Of the piece."""
    sha256: str = ""
    """Of its bytes."""

    @property
    def kept(self) -> int:
        """How many snapshots a node keeps. Pieces are written by processes that may be one apart, so that
        the newest two may both lack one."""
        return 2 if self.num_pieces == 1 else 3

    @property
    def name(self) -> str:
        """File name without its ending; sorts by step."""
        return f"step-{self.step:08d}.world-{self.world[:16]}.piece-{self.index:05d}-of-{self.num_pieces:05d}"


@dataclass(frozen=True)
class ShmFolder:
    """One node's pieces of one run. Safe with several processes: none writes another's names."""

    path: Path

    @classmethod
    def of_run(cls, secret: str) -> "ShmFolder":
        """The folder of the run with this secret; it need not exist."""
        name = hashlib.sha256(secret.encode()).hexdigest()[:24]
        return cls(shm_root() / f"{_PREFIX}{name}")

    def open(self) -> int:
        """Make the folder, hold it against `sweep` and sweep away what dead runs left.

        Returns the descriptor that holds it, for as long as it is open.
        """
        self.path.mkdir(mode=0o700, exist_ok=True)
        held = os.open(self.path, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_SH)
        sweep(self.path.parent)
        return held

    def room_bytes(self) -> int:
        """Bytes that pieces may take here: what is free and what is theirs already."""
        return shutil.disk_usage(self.path).free + self.own_bytes()

    def own_bytes(self) -> int:
        """Bytes of the pieces that are here."""
        return sum(path.stat().st_size for path in self.path.glob("*.safetensors"))

    def require_room(self, num_bytes: int) -> None:
        """Raises `OSError` where `num_bytes` more do not fit."""
        free = shutil.disk_usage(self.path).free
        # Writing to a mapped file past the room there is would kill the process instead of failing.
        if free < num_bytes:
            raise OSError(f"{num_bytes / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB free")

    def write(self, piece: Piece, tensors: dict[str, Tensor]) -> Piece:
        """Keep `tensors` (on the host) as `piece`; returns it with size and digest.

        Raises `TransientError` where there is no room; what was kept before is untouched.
        """
        part = self.path / f"{piece.name}.{os.getpid()}.part"
        try:
            self.require_room(sum(tensor.nbytes for tensor in tensors.values()))
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
            return self.adopt(piece, part)
        except (OSError, SafetensorError) as error:
            raise TransientError(f"a snapshot cannot be kept in {self.path}: {error}") from error
        finally:
            part.unlink(missing_ok=True)

    def adopt(self, piece: Piece, part: Path) -> Piece:
        """Give the file `part`, in this folder, its name and its marker."""
        digest = _sha256(part)
        piece = piece.model_copy(update={"size_bytes": part.stat().st_size, "sha256": digest})
        self._marker(piece).unlink(missing_ok=True)
        part.replace(self.file(piece))
        marker = part.with_suffix(".marker")
        marker.write_bytes(piece.to_json())
        marker.replace(self._marker(piece))
        return piece

    def file(self, piece: Piece) -> Path:
        """Where the tensors of `piece` are."""
        return self.path / f"{piece.name}.safetensors"

    def pieces(self) -> list[Piece]:
        """Pieces that have a marker, newest first; their bytes are not looked at."""
        found = []
        for path in self.path.glob("*.json"):
            try:
                piece = Piece.from_json(path.read_bytes(), source=str(path))
            except (OSError, PermanentError):
                continue
            if path == self._marker(piece):
                found.append(piece)
        return sorted(found, key=lambda piece: (-piece.step, piece.world, piece.index))

    def load(self, piece: Piece) -> dict[str, Tensor]:
        """The tensors of `piece`, mapped from its file. Raises `PermanentError` where it is damaged."""
        path = self.file(piece)
        try:
            if path.stat().st_size != piece.size_bytes or _sha256(path) != piece.sha256:
                raise PermanentError(
                    f"the snapshot {path} is damaged: another size or digest than its marker"
                )
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise PermanentError(f"the snapshot {path} cannot be read: {error}") from error

    def discard(self, piece: Piece) -> None:
        """Delete one piece, marker first."""
        self._marker(piece).unlink(missing_ok=True)
        self.file(piece).unlink(missing_ok=True)

    def prune(self, keep: int) -> None:
        """Delete all but the pieces of the `keep` snapshots that were written last.

        By time and not by step: a world that was cut off may have left later steps that nobody can use.
        """
        written: dict[tuple[int, str], int] = {}
        for piece in (found := self.pieces()):
            key = (piece.step, piece.world)
            written[key] = max(written.get(key, 0), self._written_ns(piece))
        kept = sorted(written, key=lambda key: written[key])[-keep:]
        for piece in found:
            if (piece.step, piece.world) not in kept:
                self.discard(piece)
        self._drop_torn()

    def remove(self) -> None:
        """Delete the folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _drop_torn(self) -> None:
        """What a killed process was writing."""
        for path in self.path.glob("*.part"):
            pid = re.search(r"\.(\d+)\.part$", path.name)
            if pid and not Path(f"/proc/{pid[1]}").exists():
                path.unlink(missing_ok=True)

    def _written_ns(self, piece: Piece) -> int:
        try:
            return self._marker(piece).stat().st_mtime_ns
        except FileNotFoundError:  # another process has pruned it
            return 0

    def _marker(self, piece: Piece) -> Path:
        return self.path / f"{piece.name}.json"


def shm_root() -> Path:
    """The folder under which snapshots in memory are kept."""
    return Path(os.environ.get(SHM_DIR) or "/dev/shm")


def sweep(root: Path, *, older_than_s: float = _STALE_S) -> list[Path]:
    """Delete folders of runs that no process holds and nothing was written to for `older_than_s`."""
    swept = []
    for path in root.glob(f"{_PREFIX}*"):
        try:
            stale = time.time() - path.stat().st_mtime > older_than_s
            if stale and path.stat().st_uid == os.getuid() and _is_free(path):
                shutil.rmtree(path, ignore_errors=True)
                swept.append(path)
        except OSError:  # another process sweeps too
            continue
    return swept


def _is_free(path: Path) -> bool:
    held = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(held)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
