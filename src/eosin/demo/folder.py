"""The folder of a local S3 server: data, credentials, log, and who is using it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from eosin.errors import UserError
from eosin.process import alive
from eosin.storage.atomic import translate

_GRACE_S = 6.0
"""For a server whose owner has gone; then it is killed, which loses nothing that it acknowledged."""
_STOP_TIMEOUT_S = 30.0


class ServerFolder:
    """Paths under one folder, readable by its owner only."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.data = self.root / "data"
        self.log = self.root / "server.log"
        self.identities = self.root / "identities.json"
        self._state = self.root / "server.json"
        self._lock = self.root / "lock"

    def prepare(self) -> None:
        """Make what is missing. Raises `UserError` naming the path that cannot be made."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.data.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise translate(error, "make", self.root) from error

    def credentials(self) -> tuple[str, str]:
        """(access key, secret key), drawn once and kept with mode 0600."""
        if not self.identities.exists():
            self._write_new_credentials()
        try:
            loaded = json.loads(self.identities.read_text())
            keys = loaded["identities"][0]["credentials"][0]
            return str(keys["accessKey"]), str(keys["secretKey"])
        except OSError as error:
            raise translate(error, "read", self.identities) from error
        except (ValueError, LookupError, TypeError):
            raise UserError(
                f"{self.identities} holds no credentials", hint="delete it: new ones are drawn"
            ) from None

    def lock(self) -> int:
        """A descriptor that holds the folder, for the server to inherit.

        A server whose owner has gone is about to end: it is waited for, and killed where it takes long.
        Raises `UserError` where it does not end, or the owner still lives.
        """
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise translate(error, "open", self._lock) from error
        begun_s = time.monotonic()
        while not _try_lock(descriptor):
            owner_pid, waited_s = self._read_state().get("owner_pid", 0), time.monotonic() - begun_s
            if alive(owner_pid) or waited_s > _STOP_TIMEOUT_S:
                os.close(descriptor)
                raise UserError(
                    f"an S3 server is already running in {self.root} (for process {owner_pid})",
                    hint="wait until it ends, or take another folder",
                )
            if waited_s > _GRACE_S and (server_pid := self._running_pid()):
                with suppress(OSError):
                    os.kill(server_pid, signal.SIGKILL)
            time.sleep(0.1)
        return descriptor

    def write_state(self, *, server_pid: int, port: int) -> None:
        """Say who runs here, for whoever comes next."""
        state = {"owner_pid": os.getpid(), "server_pid": server_pid, "port": port}
        self._state.write_text(json.dumps(state))

    def running_port(self) -> int | None:
        """The S3 port of a server that runs here now; None where none does."""
        return self.last_port() if self._running_pid() else None

    def last_port(self) -> int | None:
        """The S3 port of the run before, so that URLs stay the same where it is free."""
        port = self._read_state().get("port")
        return port if isinstance(port, int) else None

    def log_tail(self, num_lines: int = 5) -> str:
        """The log's last lines, for an error message."""
        with suppress(OSError):
            return "\n  ".join(self.log.read_text(errors="replace").splitlines()[-num_lines:])
        return ""

    def _running_pid(self) -> int | None:
        pid = self._read_state().get("server_pid", 0)
        running = isinstance(pid, int) and alive(pid) and str(self.data) in _command_line(pid)
        return pid if running else None

    def _read_state(self) -> dict[str, Any]:
        try:
            loaded = json.loads(self._state.read_text())
        except (OSError, ValueError):
            return {}
        return loaded if isinstance(loaded, dict) else {}

    def _write_new_credentials(self) -> None:
        keys = {"accessKey": f"EOSIN{secrets.token_hex(8).upper()}", "secretKey": secrets.token_urlsafe(30)}
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "eosin", "credentials": [keys], "actions": rights}
        fresh = self.identities.with_suffix(".new")
        try:
            fresh.unlink(missing_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump({"identities": [identity]}, file)
            fresh.replace(self.identities)
        except OSError as error:
            raise translate(error, "write", self.identities) from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _command_line(pid: int) -> str:
    """Empty where the system does not tell (then nothing is stopped by force)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
