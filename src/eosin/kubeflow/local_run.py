"""A compiled pipeline run on this machine, in a child process that is watched.

The child is `python -m eosin.kubeflow.local_run JSON`: what it prints is shown as progress.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eosin.errors import (
    EXIT_TRANSIENT,
    EosinError,
    MissingDependency,
    PermanentError,
    TransientError,
    UserError,
)
from eosin.kubeflow.progress import PipelineView, without_colors
from eosin.process import die_with_parent

# kfp writes a few kB a task; slides are staged here where their readers need them whole.
_TEMPORARY_BYTES = 32 << 20
_TMPDIR = "free some space, or set TMPDIR to a folder on a larger disk"
RUNNER_PID = "EOSIN_RUNNER_PID"
_KINDS: dict[int, type[EosinError]] = {2: UserError, 42: UserError, EXIT_TRANSIENT: TransientError}


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
            f"the disk of temporary files, at {folder.parent}, has {free_bytes / 1e6:.0f} MB free",
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
        kind = _KINDS.get(int(view.error.get("exit_code", 1)), PermanentError)
        raise kind(str(view.error["message"]), hint=str(view.error.get("hint", "")))
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
