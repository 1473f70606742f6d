"""A compiled pipeline run on this machine, in a child process that is watched.

The child is `python -m eosin.kubeflow.local_run JSON`: what it prints is shown as progress.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from eosin.errors import EXIT_TRANSIENT, MissingDependency, PermanentError, UserError, error_of
from eosin.observability import event_text, printable
from eosin.process import die_with_parent
from eosin.words import size_text

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Executing task '?([\w-]+)'?")
_RETRIED = re.compile(r"Task '?([\w-]+)'? failed .*Retrying in ([\d.]+)s")
_TITLES = {
    "plan": "plan · resolve the configuration",
    "index-shard": "index · read slide headers and find tissue",
    "index-snapshot": "index · publish the snapshot",
    "name-run": "name · the day's run",
    "plan-retrain": "plan · from the current model of the registry",
    "plan-study": "plan · one run for each value",
    "judge-new-slides": "gate · are there new slides enough",
    "say-unchanged": "stop · too few new slides",
    "pin-variants": "pin · every run reads the same slides",
    "list-evaluations": "choose · which teachers on which tasks",
    "promote": "promote · is it better than the current model",
    "study-report": "summarize · one report over all runs",
    "choose": "choose · the teacher and its tasks",
    "decode": "decode · held-out patches",
    "train": "train",
    "evaluate": "evaluate · models on tasks",
    "summarize": "summarize · write the report",
    "finish": "finish · leave nothing behind on a cluster",
}
_HEAD = ("time", "source", "event")
_NOISY_S = 5.0
_QUIET_EVENTS = {"index-pinned", "plan", "embeddings", "embeddings-shared"}


class PipelineView:
    """Reads the pipeline's output line by line. `error` holds the last error a step reported."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._step = ""
        self._last_progress_s: dict[str, float] = {}
        self._status_shown = False
        self.error: dict[str, Any] | None = None

    def feed(self, line: str) -> None:
        """Take one line of output."""
        text = without_colors(line).strip()
        started = _STARTED.search(text)
        retried = _RETRIED.search(text)
        if started:
            self._begin(started.group(1))
        elif retried:
            self._clear_status()
            self._write(f"  {retried.group(1)} failed; it is run again in {float(retried.group(2)):.0f} s\n")
        elif text.startswith("{") and text.endswith("}"):
            self._event(text)

    def finish(self) -> None:
        """End a line of progress that is being overwritten."""
        self._clear_status()

    def _begin(self, task: str) -> None:
        step = re.sub(r"-\d+$", "", task)
        if step == self._step:
            return
        self._step = step
        self._clear_status()
        self._write(f"▸ {_TITLES.get(step, step)}\n")

    def _event(self, text: str) -> None:
        try:
            event = json.loads(text)
        except ValueError:
            return
        name = event.get("event")
        if name == "error":
            self._error(event)
        elif name == "progress" or name == "step":
            self._progress(event)
        elif name is not None and name not in _QUIET_EVENTS:
            self._clear_status()
            self._write(f"  {_text(event)}\n")

    def _error(self, event: dict[str, Any]) -> None:
        self.error = event
        if event.get("exit_code") == EXIT_TRANSIENT:
            self._clear_status()
            self._write(f"  {printable(str(event.get('message')))}; trying again\n")

    def _progress(self, event: dict[str, Any]) -> None:
        source, now_s = str(event.get("source")), time.monotonic()
        line = _text(event)
        done = event.get("done", event.get("step"))
        last = done == event.get("total", event.get("num_steps"))
        if self._terminal:
            self._write(f"\r\x1b[2K  {line[:118]}")
            self._status_shown = True
        elif last or now_s - self._last_progress_s.get(source, -_NOISY_S) >= _NOISY_S:
            self._last_progress_s[source] = now_s
            self._write(f"  {line}\n")

    def _clear_status(self) -> None:
        if self._status_shown:
            self._write("\n")
            self._status_shown = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def without_colors(text: str) -> str:
    """`text` less the escape sequences with which kfp colours it."""
    return _ANSI.sub("", text)


def _text(event: dict[str, Any]) -> str:
    """An event with those of its fields that are numbers or short."""
    fields = {key: value for key, value in event.items() if key not in _HEAD and (
              isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 200))}  # fmt: skip
    return printable(f"{event.get('source')}: {event_text(str(event['event']), fields)}")


# kfp writes a few kB a task; slides are staged here where their readers need them whole.
_TEMPORARY_BYTES = 32 << 20
_TMPDIR = "free some space, or set TMPDIR to a folder on a larger disk"
RUNNER_PID = "EOSIN_RUNNER_PID"


def run_pipeline(pipeline: Path, arguments: dict[str, Any]) -> None:
    """Run the compiled `pipeline` to its end, showing progress.

    Raises the error of the step that failed, as that step reported it.
    """
    with _temporary_folder() as work_dir:
        request = {"pipeline": str(pipeline), "arguments": arguments, "work_dir": str(work_dir / "kfp")}
        command = [_python_without_spaces(work_dir), "-m", "eosin.kubeflow.local_run", json.dumps(request)]
        _watch(command)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Where kfp keeps what tasks hand on. Raises `UserError` where the disk has no room for it."""
    try:
        temporary = tempfile.TemporaryDirectory(prefix="eosin-")
    except OSError as error:
        raise UserError(f"no folder for temporary files: {error.strerror or error}", hint=_TMPDIR) from error
    with temporary as folder:
        _require_room(Path(folder))
        yield Path(folder)


def _require_room(folder: Path) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < _TEMPORARY_BYTES:
        raise UserError(
            f"the disk of temporary files, at {folder.parent}, has {size_text(free_bytes)} free",
            hint=_TMPDIR,
        )


def _watch(command: list[str]) -> None:
    view, tail = PipelineView(), deque[str](maxlen=30)
    environment = {**os.environ, "EOSIN_LOG": "json", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        preexec_fn=die_with_parent,
    ) as runner:  # fmt: skip
        assert runner.stdout is not None
        try:
            for line in runner.stdout:
                tail.append(line)
                view.feed(line)
                if view.error is not None and view.error.get("exit_code") != EXIT_TRANSIENT:
                    # kfp would wait and try again; what the user must mend, no retry mends.
                    runner.kill()
                    break
        except BaseException:
            runner.kill()
            raise
        finally:
            view.finish()
    _raise_failure(runner.returncode, view, tail)


def _raise_failure(returncode: int, view: PipelineView, tail: deque[str]) -> None:
    if returncode == 0:
        return
    if view.error is not None:
        code, hint = int(view.error.get("exit_code", 1)), str(view.error.get("hint", ""))
        raise error_of(code, str(view.error["message"]), hint)
    _require_room(Path(tempfile.gettempdir()))
    if os.environ.get("EOSIN_TRACEBACK") == "1":
        sys.stderr.writelines(tail)
    last = next((line.strip() for line in reversed(tail) if line.strip()), "it said nothing")
    raise PermanentError(
        f"the pipeline's process ended with exit code {returncode}: {without_colors(last)}",
        hint="set EOSIN_TRACEBACK=1 to see its last lines",
    )


def _python_without_spaces(work_dir: Path) -> str:
    """This interpreter under a path that a shell takes unquoted, as kfp.local needs.

    A virtual environment is found through the folder its `python` was called by, so a link to that
    folder keeps it.
    """
    if not any(character.isspace() or character in "'\"$&;()" for character in sys.executable):
        return sys.executable
    link = work_dir / "env"
    link.symlink_to(Path(sys.prefix), target_is_directory=True)
    return str(link / "bin" / Path(sys.executable).name)


def run_here(pipeline: Path, arguments: dict[str, Any], work_dir: Path) -> None:
    """Run a compiled pipeline with `kfp.local`, each task a subprocess of this interpreter."""
    try:
        from kfp import components, local
    except ImportError as error:
        raise MissingDependency("kfp", "kubeflow") from error
    # kfp warns of images without "python" in their name; here the image is not used at all.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local")
    os.environ[RUNNER_PID] = str(os.getpid())
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(work_dir))
    components.load_component_from_file(str(pipeline))(**arguments)


def main() -> None:
    """Child process: one argument, JSON {pipeline, arguments, work_dir}."""
    request = json.loads(sys.argv[1])
    run_here(Path(request["pipeline"]), request["arguments"], Path(request["work_dir"]))


if __name__ == "__main__":
    main()
