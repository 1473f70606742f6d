"""Run `eosin demo` as a person does: as a command in a process group of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A pipeline of seconds: enough steps for two exports, few patches everywhere.
TINY = (
    "train.num_steps=6", "train.batch_size=8", "train.num_microbatches=4", "train.export_every_steps=3",
    "train.checkpoint_every_steps=2", "train.log_every_steps=1",
    "train.optimizer.warmup_steps=2", "train.optimizer.freeze_last_layer_steps=1",
    "augment.num_local=2", "patches.heldout.num_patches=24",
    "model.arch_args={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}",
    "model.dino_head={num_prototypes: 64, hidden_dim: 32, bottleneck_dim: 16}",
)  # fmt: skip


# In the environment of every process of a demo, whatever session it is in.
_FOLDER = "DEMO_OF_A_TEST"


@dataclass(frozen=True)
class Finished:
    returncode: int
    stdout: str
    stderr: str

    def printed(self, label: str) -> str:
        """What follows `label` ("report: ") on the line that begins with it."""
        found = [line for line in self.stdout.splitlines() if line.startswith(label)]
        assert len(found) == 1, self.stdout + self.stderr
        return found[0].removeprefix(label).strip()

    def summary(self) -> dict[str, Any]:
        """summary.json beside the report."""
        path = Path(self.printed("report: ")).with_name("summary.json")
        loaded: dict[str, Any] = json.loads(path.read_text())
        return loaded


def start(folder: Path, *arguments: str, settings: Sequence[str] = TINY) -> subprocess.Popen[str]:
    """Start the demo in `folder`; its output is piped."""
    command = [sys.executable, "-m", "eosin", "demo", "--folder", str(folder), *arguments]
    for setting in settings:
        command += ["--set", setting]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "EOSIN_"))}
    environment[_FOLDER] = str(folder)
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout_s: float = 540) -> Finished:
    """Wait for the demo to end; kills its group where it does not."""
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_group(process)
        stdout, stderr = process.communicate()
        raise AssertionError(f"the demo did not end in {timeout_s} s:\n{stderr}") from None
    return Finished(process.returncode, stdout, stderr)


def run(folder: Path, *arguments: str, settings: Sequence[str] = TINY) -> Finished:
    """The demo from start to end."""
    return finish(start(folder, *arguments, settings=settings))


Kill = Callable[[subprocess.Popen[str]], None]


def kill_when(
    process: subprocess.Popen[str], text: str, timeout_s: float = 480, *, kill: Kill | None = None
) -> None:
    """`kill` (None: -9 to the process group) once `text` shows on standard error; AssertionError if it never
    does."""
    assert process.stderr is not None
    alarm = threading.Timer(timeout_s, kill_group, [process])
    alarm.start()
    try:
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if text in line:
                break
        else:
            raise AssertionError(f"the demo never showed {text!r}:\n{''.join(said)}")
    finally:
        alarm.cancel()
        (kill or kill_group)(process)
        process.wait()


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the process group, as a lost machine or an impatient person would."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def terminate(process: subprocess.Popen[str]) -> None:
    """SIGTERM to the demo's own process and no other, as `kill PID` does."""
    process.terminate()


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes of the demo in `folder` that have not ended, its server among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{_FOLDER}={folder}\0".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has just ended, or is another user's
            continue
    return found
