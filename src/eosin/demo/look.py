"""Leavings of a demo: its S3 server for the time of one command, and its newest run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from eosin.demo.server import LocalS3, ServerFolder
from eosin.errors import UserError
from eosin.layout import RunLayout
from eosin.status import RunStatus, run_status
from eosin.storage import Store, join_uri, open_store

BUCKET = "s3://eosin-demo"
DEFAULT_FOLDER = Path(".demo")


def storage_root(folder: Path) -> str:
    """Where a demo publishes whose slides lie in an S3 of the user's own."""
    return (folder / "store").as_uri()


def demo_command(folder: Path, command: str) -> str:
    """`eosin demo COMMAND` as one types it in this shell."""
    program = "eosin" if shutil.which("eosin") else os.path.relpath(Path(sys.executable).with_name("eosin"))
    verb, _, rest = command.partition(" ")
    option = "" if folder == DEFAULT_FOLDER.absolute() else f" --folder {shlex.quote(str(folder))}"
    return f"{program} demo {verb}{option}" + (f" -- {rest}" if rest else "")


def demo_status(folder: Path) -> RunStatus:
    """The state of the demo's newest run. Raises `UserError` where there is none in `folder`."""
    with opened_demo(folder) as root:
        return run_status(newest_run(folder, root))


def run_beside(folder: Path, command: Sequence[str]) -> int:
    """Run a command with the demo's S3 server up and in its environment; returns its exit code."""
    if not command:
        raise UserError(
            "no command named", hint="such as: eosin demo exec -- eosin logs s3://eosin-demo/runs/demo"
        )
    program = [sys.executable, "-m", "eosin"] if command[0] == "eosin" else [command[0]]
    with opened_demo(folder):
        try:
            return subprocess.run([*program, *command[1:]]).returncode
        except OSError as error:
            raise UserError(f"{command[0]} cannot be run: {error.strerror}") from error


@contextmanager
def opened_demo(folder: Path) -> Iterator[str]:
    """URI of what the demo in `folder` published, with its server up and in this process's environment.

    The server of a demo that is running is used as it is. Raises `UserError` where no demo has been.
    """
    folder = folder.expanduser().absolute()
    server_folder = ServerFolder(folder / "s3")
    if not server_folder.data.is_dir():
        if (folder / "store").is_dir():
            yield storage_root(folder)
            return
        raise UserError(f"there is no demo in {folder}", hint="run one: eosin demo, or name its --folder")
    server = LocalS3(folder / "s3")
    if port := server_folder.running_port():
        server.port, (server.access_key, server.secret_key) = port, server_folder.credentials()
        os.environ.update(server.env)
        yield BUCKET
        return
    with server:
        os.environ.update(server.env)
        yield BUCKET


def newest_run(folder: Path, root: str) -> str:
    """URI of the run under `root` that was planned last. Raises `UserError` where there is none."""
    store: Store = open_store(join_uri(root, "runs"))
    found = [info for info in store.list() if info.key.partition("/")[2] == RunLayout.CONFIG]
    if not found:
        raise UserError(f"the demo in {folder} has not begun a run", hint="run it: eosin demo")
    return join_uri(store.uri, max(found, key=lambda info: info.modified_s).key.rpartition("/")[0])
