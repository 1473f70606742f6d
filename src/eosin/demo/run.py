"""`make demo`: from nothing to a report."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eosin.config.load import override_keys
from eosin.demo.look import BUCKET, demo_command, storage_root
from eosin.demo.material import Material, synthetic_material, users_material
from eosin.errors import EXIT_TRANSIENT, EXIT_USER, EosinError, PermanentError, TransientError, UserError
from eosin.layout import TEACHER_CARD, TEACHER_README, TEACHER_TIMM_CONFIG, TEACHER_WEIGHTS, RunLayout
from eosin.records import TrainingDone
from eosin.storage import NotFound, join_uri, open_store

_REPORT_FILES = (RunLayout.SUMMARY_JSON, RunLayout.SUMMARY_MD, RunLayout.SUMMARY_HTML)
_TEACHER_FILES = (TEACHER_CARD, TEACHER_WEIGHTS, TEACHER_TIMM_CONFIG, TEACHER_README)


@dataclass(frozen=True)
class DemoResult:
    """What a demo ended with, for a person to look at."""

    run: str
    report: str
    """Local path of summary.html."""
    teacher: str
    """Local folder of the newest teacher, as plain timm loads it (its README.md says how)."""
    table: str

    look: str
    """Commands that show more of the run."""

    def __str__(self) -> str:
        rest = f"model:  {self.teacher}\nlook:   {self.look}\nreport: {self.report}"
        return f"{self.table}\n\n{rest}"


def run_demo(
    folder: Path,
    *,
    slides: str = "",
    overrides: str = "",
    port: int | None = None,
    settings: tuple[str, ...] = (),
) -> DemoResult:
    """Run the compiled pipeline on synthetic slides, or on the user's, in `folder`.

    Killed at any instant, the same call continues. Raises `UserError` where `folder` is in use or
    cannot be written, where `slides` holds nothing, and whatever a step reports.
    """
    _refuse_what_has_no_use(slides, overrides, port)
    folder = folder.expanduser().absolute()
    with exclusive(folder), room(folder), _place(folder, slides, port) as (root, environment):
        _say("slides · gather them in the bucket")
        material = users_material(root, slides, overrides) if slides else synthetic_material(root)
        run_uri = join_uri(root, f"runs/{_run_name(material, settings)}")
        _run_pipeline(run_uri, material, settings, environment)
        return _fetch_report(run_uri, folder)


def _refuse_what_has_no_use(slides: str, overrides: str, port: int | None) -> None:
    if overrides and not slides:
        raise UserError(
            "--overrides (OVERRIDES) says what headers of your own slides lack, and no slides are named",
            hint="name them too: make demo SLIDES=/data/slides OVERRIDES=mpp.csv",
        )
    if port is not None and slides.startswith("s3://"):
        raise UserError(
            "--port has no use here: slides in s3:// are read where they lie, without a server of the demo",
            hint="leave --port out",
        )


@contextmanager
def _place(folder: Path, slides: str, port: int | None) -> Iterator[tuple[str, dict[str, str]]]:
    """(URI everything is published under, environment of the pipeline).

    Slides in an S3 of the user's keep the user's own endpoint and credentials, so there the demo
    publishes to its folder; otherwise to a bucket of its own server.
    """
    if slides.startswith("s3://"):
        yield storage_root(folder), {}
        return
    from eosin.demo.server import LocalS3

    _say("S3 · start a server on 127.0.0.1")
    with LocalS3(folder / "s3", port=port) as server:
        os.environ.update(server.env)
        server.ensure_bucket(BUCKET)
        print(f"  {server.endpoint_url}, data in {folder / 's3'}", file=sys.stderr)
        yield BUCKET, server.env


def _run_name(material: Material, settings: tuple[str, ...]) -> str:
    """The same material and settings give the same run, so that a second call continues the first."""
    if material.name == "synthetic" and not settings:
        return "demo"
    own = material.settings if material.name != "synthetic" else ()
    text = json.dumps([material.digest, *own, *settings])
    return f"demo-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _run_pipeline(
    run_uri: str, material: Material, settings: tuple[str, ...], environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "eosin", "run", "demo", "--local", "--run", run_uri]
    command += ["--slides", material.slides_uri]
    given = {override_keys(setting) for setting in settings}
    for setting in (*(each for each in material.settings if override_keys(each) not in given), *settings):
        command += ["--set", setting]
    child = subprocess.run(
        [*command, "--json"], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )
    if child.returncode:
        _raise_failure(child.returncode, child.stdout)


def _raise_failure(returncode: int, output: str) -> None:
    """Raise what the pipeline's process reported on its last line."""
    try:
        failure: dict[str, Any] = json.loads(output.splitlines()[-1])["error"]
    except (ValueError, KeyError, IndexError):
        raise PermanentError(f"the pipeline's process ended with exit code {returncode}") from None
    kind = {EXIT_USER: UserError, EXIT_TRANSIENT: TransientError}.get(returncode, PermanentError)
    of_demo = "make demo SLIDES=… OVERRIDES=FILE (--overrides)"
    hint = re.sub(r"slides\.overrides(=URI)?", of_demo, failure["hint"])
    if "was begun with another configuration" in failure["message"]:  # by another version of the demo
        hint = "take another folder: eosin demo --folder OTHER, or remove this one"
    raise kind(failure["message"], hint=hint)


def _fetch_report(run_uri: str, demo_folder: Path) -> DemoResult:
    from eosin.summary.table import terminal_table

    store = open_store(run_uri)
    folder = demo_folder / "report" / run_uri.rsplit("/", 1)[-1]
    try:
        done = store.get(RunLayout.TRAINING_DONE)
        teacher = TrainingDone.from_json(done, source=join_uri(run_uri, RunLayout.TRAINING_DONE)).models[-1]
        for key in _REPORT_FILES:
            store.download(key, folder / Path(key).name)
        for name in _TEACHER_FILES:
            store.download(RunLayout.teacher(teacher) + name, folder / teacher / name)
    except NotFound as error:
        raise PermanentError(f"the run ended without {error.args[0]}", hint=f"eosin logs {run_uri}") from None
    table = terminal_table(store.get(RunLayout.SUMMARY_JSON))
    return DemoResult(
        run=run_uri,
        report=str(folder / "summary.html"),
        teacher=str(folder / teacher),
        table=table,
        look=", ".join(demo_command(demo_folder, each) for each in ("status", f"exec eosin logs {run_uri}")),
    )


def _say(text: str) -> None:
    print(f"▸ {text}", file=sys.stderr, flush=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the kernel lets go when the process ends, however it ends.

    Raises `UserError` naming the process that holds it, or the reason why the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be used: {error.strerror}", hint="name another folder with --folder"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UserError(
                f"a demo is already running in {folder} (process {file.read().strip() or 'unknown'})",
                hint="wait for it, or name another folder with --folder",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


NEEDED_BYTES = 256 << 20
"""Of the synthetic demo, slides and report included, generously."""
_FULL_BYTES, _FULL_SHARE = 32 << 20, 0.01
_HINT = "free some space, or name another folder with --folder; the same command continues"


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Raises `UserError` where `folder` has no room to begin with, or what fails here ran out of it."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < NEEDED_BYTES:
        raise UserError(
            f"the disk of {folder} has {_mb(free_bytes)} free, and the demo wants {_mb(NEEDED_BYTES)}",
            hint=_HINT,
        )
    try:
        yield
    except EosinError as error:
        usage = shutil.disk_usage(folder)
        # The server stops taking objects a little before the disk is at its end.
        if usage.free < max(_FULL_BYTES, _FULL_SHARE * usage.total):
            raise UserError(
                f"the disk of {folder} is full ({_mb(usage.free)} free): {error.message}", hint=_HINT
            ) from error
        raise


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
