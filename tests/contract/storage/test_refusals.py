"""What a user can get wrong: each is one line that names bucket, key and operation, with a hint."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eosin.demo.server import LocalS3
from eosin.errors import UserError
from eosin.storage import ByteRange, Store, open_store
from tests.support.faults import Fault, FaultProxy, seeded

ASKS: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.get("some/key"),
    "read ranges": lambda store: store.get_ranges([ByteRange("some/key", 0, 1)]),
    "read head": lambda store: store.head("some/key"),
    "write": lambda store: store.put("some/key", b"x"),
    "list": lambda store: list(store.list("some/")),
    "delete": lambda store: store.delete(["some/key"]),
}


def refusal(ask: Callable[[Store], object], store: Store) -> UserError:
    with pytest.raises(UserError) as caught:
        ask(store)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("operation", ASKS)
def test_a_wrong_secret(operation: str, bucket_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    error = refusal(ASKS[operation], open_store(bucket_uri))
    assert operation.split()[0] in error.message
    assert f"{bucket_uri}/some/" in error.message
    assert "AWS_SECRET_ACCESS_KEY" in error.hint


@pytest.mark.parametrize("operation", ASKS)
def test_an_unknown_access_key(operation: str, bucket_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    error = refusal(ASKS[operation], open_store(bucket_uri))
    assert f"{bucket_uri}/some/" in error.message
    assert "AWS_ACCESS_KEY_ID" in error.hint


@pytest.mark.parametrize("operation", ASKS)
def test_a_bucket_that_is_not_there(operation: str, bucket_uri: str) -> None:
    error = refusal(ASKS[operation], open_store("s3://no-such-bucket"))
    assert "no bucket no-such-bucket" in error.message


@pytest.mark.parametrize("operation", ASKS)
def test_no_credentials_at_all(
    operation: str, bucket_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    error = refusal(ASKS[operation], open_store(bucket_uri))
    assert "no S3 credentials" in error.message


def test_a_request_without_signature_is_refused(bucket_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    for operation in ("read", "read ranges", "write"):
        assert "permission denied" in refusal(ASKS[operation], open_store(bucket_uri)).message


@pytest.mark.parametrize("operation", ASKS)
def test_a_denied_prefix(
    operation: str, s3: LocalS3, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(s3.endpoint_url, seeded(0, 1.0, Fault.DENY)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        error = refusal(ASKS[operation], open_store(bucket_uri))
        assert len(proxy.seen) == 1
    assert "permission denied" in error.message
    assert f"cannot {operation.split()[0]} {bucket_uri}/some/" in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL_S3", "localhost:9000"),
        ("AWS_CA_BUNDLE", "/no/such/bundle.pem"),
        ("AWS_PROFILE", "no-such-profile"),
        ("AWS_S3_ADDRESSING_STYLE", "sideways"),
        ("EOSIN_S3_TIMEOUT_S", "soon"),
        ("EOSIN_RETRY_MAX_ATTEMPTS", "-1"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(
    name: str, value: str, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        open_store(bucket_uri).get("k")
    assert value in caught.value.message


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    """As another user, since root may write anywhere."""
    closed = tmp_path / "closed folder"
    closed.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    code = (
        "import sys; from eosin.storage import open_store; from eosin.errors import UserError, describe\n"
        "try: open_store(sys.argv[1]).put('a/k', b'x')\n"
        "except UserError as error: print(describe(error))"
    )
    # Modules are found before the change of user, which may close the folders they lie in.
    prepare = "import eosin.storage.file, os; os.getuid() or (os.setgid(65534), os.setuid(65534))\n"
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    shown = subprocess.run(
        [sys.executable, "-c", prepare + code, str(closed)], capture_output=True, text=True, timeout=60
    )
    assert f"cannot write {closed}/a/k: Permission denied" in shown.stdout, shown.stderr
    assert list(closed.iterdir()) == []


def test_a_disk_that_is_full_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on file size stands in for the disk: the write fails half-way in the same way."""
    store = open_store(str(tmp_path))
    store.put("k", b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        error = refusal(lambda store: store.put("k", b"x" * 1_000_000), store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert error.message == f"cannot write {tmp_path}/k: {os.strerror(errno.EFBIG)}"
    assert [path.name for path in tmp_path.iterdir()] == ["k"]
    assert store.get("k") == b"before"


def test_no_space_left_on_a_real_small_disk(tmp_path: Path) -> None:
    disk = tmp_path / "small disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        store = open_store(str(disk))
        error = refusal(lambda store: store.put("k", b"x" * 1_000_000), store)
        assert error.message == f"cannot write {disk}/k: No space left on device"
        assert list(store.list()) == []
        store.put("small", b"x")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a", b"x")
    assert f"{tmp_path}/a/b" in refusal(lambda store: store.put("a/b", b"x"), store).message


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/passwd", "a//b", "", "a\0b", "."])
def test_a_key_cannot_leave_the_folder(key: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "inside"))
    for ask in (lambda: store.put(key, b"x"), lambda: store.get(key), lambda: store.delete([key])):
        with pytest.raises(UserError, match="cannot name a file"):
            ask()
    assert [path.name for path in tmp_path.iterdir()] == []


def test_what_is_no_file_is_passed_over_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"x")
    (tmp_path / "b.svs").symlink_to("c.svs")
    (tmp_path / "c.svs").symlink_to("b.svs")
    (tmp_path / "dangling.svs").symlink_to("nowhere")
    (tmp_path / "up").symlink_to("..")
    os.mkfifo(tmp_path / "pipe.svs")
    store = open_store(str(tmp_path))
    assert [each.key for each in store.list() if not each.key.startswith("up/")] == ["a.svs"]
    for key in ("b.svs", "pipe.svs"):
        assert not store.exists(key)


def test_a_name_that_is_no_text_is_passed_over_and_said(tmp_path: Path) -> None:
    (tmp_path / "Präparat.svs").write_bytes(b"x")
    (tmp_path / os.fsdecode(b"Pr\xe4parat.svs")).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"Pr\\xe4parat.svs is passed over: its name is not UTF-8"):
        assert [each.key for each in open_store(str(tmp_path)).list()] == ["Präparat.svs"]
