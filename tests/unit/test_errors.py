"""Exit codes, and what a person sees."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest

from eosin import steps
from eosin.cli.app import invoke
from eosin.errors import (
    MissingDependency,
    PermanentError,
    TransientError,
    UserError,
    as_user_error,
    describe,
    exit_code_of,
    install_command,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("x"), 2),
        (MissingDependency("cucim", "gpu"), 2),
        (TransientError("x"), 75),
        (PermanentError("x"), 1),
        (ValueError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_code_outside_a_pod(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code


def test_user_error_inside_a_pod_fails_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EOSIN_IN_POD", "1")
    assert exit_code_of(UserError("x")) == 42
    assert exit_code_of(TransientError("x")) == 75


def test_errors_cross_process_borders_whole() -> None:
    error = pickle.loads(pickle.dumps(UserError("bucket b is missing", hint="make it")))  # noqa: S301
    assert (error.message, error.hint) == ("bucket b is missing", "make it")
    assert pickle.loads(pickle.dumps(MissingDependency("cucim", "gpu"))).hint == install_command("gpu")  # noqa: S301


def test_describe_is_message_and_hint() -> None:
    assert describe(UserError("no bucket", hint="make one")) == "no bucket\n  make one"


def test_step_reports_its_error_as_one_json_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EOSIN_LOG", "json")

    def fail() -> None:
        raise UserError("slide a.svs has no mpp", hint="add it to the overrides")

    with pytest.raises(SystemExit) as stopped:
        steps.as_step(fail)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line) == {
        "event": "error", "kind": "UserError", "exit_code": 2,
        "message": "slide a.svs has no mpp", "hint": "add it to the overrides",
    }  # fmt: skip


def test_unknown_recipe_is_a_users_error_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["run", "vits16-dinov3", "--local", "--run", "/tmp/nowhere"]) == 2
    captured = capsys.readouterr()
    assert "did you mean vits16-dinov2?" in captured.err and "Traceback" not in captured.err


def test_json_error_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["recipes", "show", "nothing-like-it", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["train"], ["decode", "x", "--shard"], ["index", "--bogus"]]
)
def test_misuse_of_the_command_exits_2(arguments: list[str]) -> None:
    assert invoke(arguments) == 2


@pytest.mark.parametrize("shard", ["3/2", "a/b", "1", "2/2", "-1/3"])
def test_malformed_shard_is_named(shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["index", "--slides", "/nowhere", "--index", "/tmp/i", f"--shard={shard}"]) == 2
    assert repr(shard) in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["status"], ["nonsense"], ["status", "--bogus", "x"], ["gc"]])
def test_a_command_line_that_cannot_be_taken_is_answered_in_json(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke([*arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == 2 and error["message"] and error["hint"]


def test_an_interruption_says_that_the_same_command_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(uri: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eosin.status.run_status", interrupted)
    assert invoke(["status", "file:///tmp/x"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n  → the same command continues\n"
    assert invoke(["status", "file:///tmp/x", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 130


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"url": "file:///my%20src", "dir_info": {"editable": True}}, "pip install -e '/my src[train]'"),
        ({"url": "file:///src/eosin", "dir_info": {}}, "pip install '/src/eosin[train]'"),
        (
            {"url": "file:///dist/eosin-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'eosin[train] @ file:///dist/eosin-0.1.0-py3-none-any.whl'",
        ),
        (
            {"url": "https://host/eosin.git", "vcs_info": {"vcs": "git"}},
            "pip install 'eosin[train] @ git+https://host/eosin.git'",
        ),
        (None, "pip install 'eosin[train]'"),
    ],
)  # fmt: skip
def test_an_extra_is_installed_from_where_eosin_came(
    origin: dict[str, object] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr("eosin.errors.distribution", lambda name: Installed())
    monkeypatch.delenv("EOSIN_IMAGE", raising=False)
    assert install_command("train") == command
    assert MissingDependency("torch", "train").hint == command
    monkeypatch.setenv("EOSIN_IMAGE", "index")  # nothing can be installed into an image
    assert install_command("train") == "this is the index image; the train image has it"
    assert install_command("demo") == "this is the index image; no image has it"


def test_closed_shared_memory_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a semaphore of another user's /dev/shm raises, by the standard library itself.
    refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    assert as_user_error(refused) is refused
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert "mount -t tmpfs" in str(getattr(as_user_error(refused), "hint", ""))
    named = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/slides")
    assert as_user_error(named) is named


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_semaphores_of_a_closed_shared_memory_raise_what_is_known() -> None:
    script = (
        "import multiprocessing.synchronize, os; from eosin.errors import as_user_error\nos.setuid(10001)\n"
        "try: multiprocessing.Lock()\nexcept OSError as error: print(type(as_user_error(error)).__name__)"
    )
    mount = 'mount -t tmpfs -o mode=755 tmpfs /dev/shm && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, sys.executable, script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "UserError\n", done.stderr
