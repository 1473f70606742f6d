"""doctor finds what is broken, names the fix, and leaves nothing behind."""

from pathlib import Path

import pytest

from eosin import doctor
from eosin.doctor import check_store, run_checks
from eosin.errors import Check, UserError, install_command
from eosin.storage import open_store


def failed(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.status == "fail"]


def named(checks: list[Check], name: str) -> Check:
    (found,) = (check for check in checks if check.name == name)
    return found


def test_a_working_bucket_passes_every_operation_and_is_left_as_it_was(bucket_uri: str) -> None:
    open_store(bucket_uri).put("runs/mine", b"x")
    checks = check_store(f"{bucket_uri}/runs")
    assert [check.status for check in checks] == ["ok"] * 5
    assert [item.key for item in open_store(bucket_uri).list()] == ["runs/mine"]


def test_a_wrong_secret_is_one_failure_with_a_fix(bucket_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    (check,) = check_store(bucket_uri)
    assert check.status == "fail"
    assert bucket_uri in check.detail
    assert "AWS_SECRET_ACCESS_KEY" in check.fix


def test_in_a_pod_a_missing_secret_is_told_by_its_name_and_the_demos_server_is_not_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    found = {check.name: check for check in doctor.run_checks()}
    assert "S3 server" not in found and "Secret eosin-s3" in found["S3 credentials"].fix
    with pytest.raises(UserError) as refused:
        next(iter(open_store("s3://there-is-no-such-bucket/runs").list()), None)
    assert "Secret eosin-s3" in refused.value.hint


def test_a_missing_bucket_and_a_dead_endpoint(bucket_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = check_store("s3://there-is-none/runs")
    assert "no bucket there-is-none" in check.detail
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("EOSIN_RETRY_MAX_ATTEMPTS", "1")
    (check,) = check_store(bucket_uri)
    assert "does not answer" in check.detail


@pytest.mark.parametrize("uri", ["gs://bucket/x", "s3://", ""])
def test_a_place_that_cannot_be_meant(uri: str) -> None:
    (check,) = check_store(uri)
    assert (check.status, bool(check.fix)) == ("fail", True)


def test_a_store_that_ignores_conditions_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eosin.storage.file import FileStore

    class Careless(FileStore):
        def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None):  # type: ignore[no-untyped-def]
            return super().put(key, data)

    monkeypatch.setattr(doctor, "open_store", lambda uri: Careless(tmp_path))
    assert "if_none_match" in named(check_store(str(tmp_path)), "store conditional put").detail
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_library_that_crashes_or_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    for code, words in (
        (crash, "crashes (signal 11)"),
        ("raise RuntimeError('no driver')", "no driver"),
        ("pass", "prints nothing"),
    ):
        library = doctor._Library("lib", ("numpy",), code, "gpu", "")
        check = doctor._library(library)
        assert (check.status, words in check.detail) == ("fail", True), check
    monkeypatch.setattr(doctor, "_IMPORT_TIMEOUT_S", 0.5)
    check = doctor._library(doctor._Library("lib", ("numpy",), "import time; time.sleep(30)", "gpu", ""))
    assert "no answer" in check.detail
    absent = doctor._library(doctor._Library("lib", ("no-such-distribution",), "", "gpu", "slow"))
    assert (absent.status, absent.fix) == ("warn", install_command("gpu"))


def test_little_room_is_told_by_degrees(tmp_path: Path) -> None:
    assert doctor._disk(tmp_path, warn_bytes=0, fail_bytes=0).status == "ok"
    assert doctor._disk(tmp_path, warn_bytes=1e18, fail_bytes=0).status == "warn"
    assert doctor._disk(tmp_path, warn_bytes=1e18, fail_bytes=1e18).status == "fail"
    assert doctor._disk(tmp_path / "none").status == "fail"
    assert doctor._shared_memory(tmp_path, warn_bytes=1e18).status == "warn"
    assert doctor._shared_memory(tmp_path / "none").status == "ok"


def test_every_finding_but_a_good_one_has_a_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("PATH", "")
    checks = list(run_checks())
    assert {"python", "torch", "OpenSlide", "cuCIM", "nvImageCodec", "Kubeflow Pipelines"} <= {
        check.name for check in checks
    }
    assert named(checks, "S3 credentials").status == "warn"
    assert all(check.fix for check in checks if check.status != "ok")
    assert not failed(checks)
