"""The local S3 server: private, durable, and gone when its owner is."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eosin.demo.server import LocalS3
from eosin.errors import UserError
from eosin.storage import open_store

_HOLD = """
import sys, time
from pathlib import Path
from eosin.demo.server import LocalS3
with LocalS3(Path(sys.argv[1])) as s3:
    s3.ensure_bucket("s3://bucket")
    print(s3.endpoint_url, flush=True)
    time.sleep(300)
"""


def hold(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A process (in a group of its own) that runs a server, and the server's URL."""
    owner = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert owner.stdout is not None
    return owner, owner.stdout.readline().strip()


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names the data folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"{folder}/data" in command:
            found.append(int(path.parent.name))
    return found


def wait_until_gone(folder: Path, timeout_s: float = 60) -> None:
    end_s = time.monotonic() + timeout_s
    while processes_of(folder):
        assert time.monotonic() < end_s, "the server outlived its owner"
        time.sleep(0.05)


def listening_addresses(pids: set[int]) -> set[str]:
    """Local addresses (hex, as the kernel shows them) on which any of `pids` listens."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                match = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
            except OSError:
                continue
            if match:
                sockets.add(match.group(1))
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                addresses.add(fields[1].partition(":")[0])
    return addresses


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_port_listens_on_loopback_only(s3: LocalS3) -> None:
    addresses = listening_addresses(set(processes_of(s3.folder.root)))
    assert addresses == {"0100007F"}


def test_keys_are_private_and_folder_too(s3: LocalS3) -> None:
    assert stat.S_IMODE(s3.folder.identities.stat().st_mode) == 0o600
    assert stat.S_IMODE(s3.folder.data.stat().st_mode) == 0o700
    assert len(s3.secret_key) >= 32


def test_data_and_keys_survive_a_kill_of_the_whole_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a folder é"
    owner, url = hold(folder)
    with_keys = LocalS3(folder)
    with_keys.port = int(url.rpartition(":")[2])
    with_keys.access_key, with_keys.secret_key = with_keys.folder.credentials()
    for name, value in with_keys.env.items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://bucket/x")
    bodies = {f"k{number}": os.urandom(10_000) for number in range(20)}
    for key, body in bodies.items():
        store.put(key, body)
    os.killpg(owner.pid, signal.SIGKILL)
    owner.communicate()
    with LocalS3(folder) as again:
        assert again.endpoint_url == url
        assert {key: store.get(key) for key in bodies} == bodies
    wait_until_gone(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_kill_of_the_owner_leaves_nothing_running(tmp_path: Path) -> None:
    owner, _ = hold(tmp_path)
    assert processes_of(tmp_path)
    owner.kill()
    wait_until_gone(tmp_path)
    owner.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_server_that_hangs_after_its_owner_died_is_replaced(tmp_path: Path) -> None:
    owner, _ = hold(tmp_path)
    (hanging,) = processes_of(tmp_path)
    os.kill(hanging, signal.SIGSTOP)
    owner.kill()
    owner.communicate()
    with LocalS3(tmp_path) as s3:
        assert processes_of(tmp_path) != [hanging]
        s3.ensure_bucket("s3://bucket")


def test_a_folder_in_use_is_refused_and_left_in_peace(tmp_path: Path) -> None:
    with LocalS3(tmp_path) as first:
        with pytest.raises(UserError, match="already running") as caught:
            LocalS3(tmp_path).start()
        assert str(os.getpid()) in caught.value.message
        first.ensure_bucket("s3://still-there")
    LocalS3(tmp_path).stop()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        LocalS3(tmp_path / "file" / "s3").start()
    assert str(tmp_path / "file") in caught.value.message


def test_damaged_credentials_are_named(tmp_path: Path) -> None:
    server = LocalS3(tmp_path)
    server.folder.prepare()
    server.folder.identities.write_text("{")
    with pytest.raises(UserError, match=r"identities\.json"):
        server.start()
    assert processes_of(tmp_path) == []
