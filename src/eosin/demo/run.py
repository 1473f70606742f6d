"""The demo: slides brought into a bucket, the pipeline over them, its report, and a look at what is there."""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eosin.config.load import load_config, override_keys
from eosin.demo.server import LocalS3, ServerFolder
from eosin.errors import EosinError, PermanentError, UserError
from eosin.layout import TEACHER_CARD, TEACHER_README, TEACHER_TIMM_CONFIG, TEACHER_WEIGHTS, RunLayout
from eosin.preflight import TRAIN_LIBRARIES, check_trainable_apart, require_libraries
from eosin.process import die_with_parent
from eosin.recipes import load_recipe
from eosin.records import TrainingDone
from eosin.status import RunStatus, run_status
from eosin.storage import NotFound, Store, join_uri, open_store, read_object
from eosin.storage.atomic import translate
from eosin.submission import PipelineRequest, run_locally
from eosin.words import size_text

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Material:
    """The slides of a demo, in the bucket, and the settings that they bring."""

    name: str
    slides_uri: str
    digest: str
    """Of the names and sizes of what lies there."""
    settings: tuple[str, ...]


def synthetic_material(root: str) -> Material:
    """Put the demo's generated slides and labelled patches into the bucket."""
    from eosin.demo.synthetic import SyntheticConfig, write_dataset

    store = open_store(join_uri(root, SYNTHETIC))
    write_dataset(store.uri, SyntheticConfig(labelled_patients=18), progress=_bar("slides generated"))
    digest = _digest([(info.key, info.size_bytes) for info in store.list()])
    labelled = join_uri(store.uri, "labelled")
    tasks = [
        {"kind": "unsupervised", "name": "heldout"},
        {"kind": "knn", "name": "textures-knn", "dataset": labelled},
        {"kind": "linear-probe", "name": "textures-linear", "dataset": labelled,
         # eva's 12,500 steps at 3e-4, shortened to as many at a rate that gets there.
         "probe": {"num_steps": 2000, "lr": 0.01, "weight_decay": 0.0}},
    ]  # fmt: skip
    settings = (
        f"slides.overrides={json.dumps(join_uri(store.uri, 'overrides.csv'))}",
        f"evaluate.tasks={json.dumps(tasks)}",
    )
    return Material(SYNTHETIC, join_uri(store.uri, "slides"), digest, settings)


def users_material(root: str, slides: str, overrides: str) -> Material:
    """The user's slides: a local file or folder is put into the bucket, an s3:// URI is read where it is."""
    if slides.startswith("s3://"):
        listed = [(info.key, info.size_bytes) for info in open_store(slides).list()]
        if not listed:
            raise UserError(f"there is no object under {slides}", hint="check the bucket and the prefix")
        digest = _digest(listed)
        uri = slides
    else:
        path = Path(slides).expanduser()
        files = list(_local_files(path))
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:10]
        store = open_store(join_uri(root, f"slides-{name}"))
        digest = upload(store, files)
        uri = store.uri
    settings: tuple[str, ...] = ()
    if overrides:
        settings = (f"slides.overrides={json.dumps(_published(root, overrides))}",)
    return Material("user", uri, digest, settings)


def upload(store: Store, files: list[tuple[str, Path]]) -> str:
    """Make the store hold exactly `files` ((key, path) pairs); what is there unchanged stays.

    Returns a digest of names and sizes. Raises `UserError` where a file cannot be read.
    """
    there = {info.key: info for info in store.list()}
    advance = _bar("files in the bucket")
    for number, (key, path) in enumerate(files, start=1):
        try:
            same = key in there and there[key].size_bytes == path.stat().st_size
            if not (same and there[key].modified_s >= path.stat().st_mtime):
                store.put_file(key, path)
        except OSError as error:
            raise translate(error, "read", path) from error
        advance(number, len(files))
    store.delete([key for key in there if key not in dict(files)])
    return _digest([(key, path.stat().st_size) for key, path in files])


def _local_files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
        return
    if not path.is_dir():
        raise UserError(f"there are no slides at {path}", hint="name a file, a folder or an s3:// URI")
    # Not `rglob`, which passes over a folder that it may not read without a word.
    keys = [info.key for info in open_store(str(path)).list()]
    shown = [key for key in keys if not any(part.startswith(".") for part in key.split("/"))]
    if not shown:
        raise UserError(f"{path} holds no file", hint="name a folder of slides")
    for key in shown:
        yield key, path / key


def _published(root: str, overrides: str) -> str:
    """The CSV's bytes under a name of their own in the bucket: a corrected one is another run's."""
    data = read_object(overrides, absent=f"there is no CSV at {overrides}", hint="check --overrides")
    store = open_store(join_uri(root, "overrides"))
    key = f"{hashlib.sha256(data).hexdigest()[:10]}.csv"
    store.put(key, data)
    return join_uri(store.uri, key)


def _digest(listed: list[tuple[str, int]]) -> str:
    return hashlib.sha256(json.dumps(sorted(listed)).encode()).hexdigest()


def _bar(unit: str) -> Callable[[int, int], None]:
    """A counter on standard error: one line that grows on a terminal, few lines otherwise."""

    def advance(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r  {done}/{total} {unit}", end=end, file=sys.stderr, flush=True)
        elif done == total or done % 4 == 0:
            print(f"  {done}/{total} {unit}", file=sys.stderr, flush=True)

    return advance


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
        teacher, report = map(_from_here, (self.teacher, self.report))
        rest = f"model:  {teacher}\nlook:   {self.look}\nreport: {report}"
        return f"{self.table}\n\n{rest}"


def _from_here(path: str) -> str:
    """Relative where it lies below the working directory, as people type it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def run_demo(
    folder: Path, *, slides: str = "", overrides: str = "", settings: tuple[str, ...] = ()
) -> DemoResult:
    """Run the compiled pipeline on synthetic slides, or on the user's, in `folder`.

    Killed at any instant, the same call continues. Raises `UserError` where `folder` is in use or
    cannot be written, where `slides` holds nothing, and whatever a step reports.
    """
    if overrides and not slides:
        raise UserError(
            "--overrides (OVERRIDES) says what headers of your own slides lack, and no slides are named",
            hint="name them too: make demo SLIDES=/data/slides OVERRIDES=mpp.csv",
        )
    if slides and not slides.startswith("s3://"):
        next(_local_files(Path(slides).expanduser()))  # refused before a folder is made and a server started
    if settings:  # what training would refuse, before slides are drawn
        text, source = load_recipe("demo")
        require_libraries(TRAIN_LIBRARIES)
        check_trainable_apart(load_config(text, source=source, overrides=settings))
    folder = folder.expanduser().absolute()
    with exclusive(folder), room(folder), _place(folder, slides) as root:
        _say("slides · gather them in the bucket")
        material = users_material(root, slides, overrides) if slides else synthetic_material(root)
        run_uri = join_uri(root, f"runs/{_run_name(material, settings)}")
        _run_pipeline(run_uri, material, settings)
        return _fetch_report(run_uri, folder)


@contextmanager
def _place(folder: Path, slides: str) -> Iterator[str]:
    """URI everything is published under.

    Slides in an S3 of the user's keep the user's own endpoint and credentials, so there the demo
    publishes to its folder; otherwise to a bucket of its own server.
    """
    if slides.startswith("s3://"):
        yield storage_root(folder)
        return
    _say("S3 · start a server on 127.0.0.1")
    with LocalS3(folder / "s3") as server:
        os.environ.update(server.env)
        server.ensure_bucket(BUCKET)
        print(f"  {server.endpoint_url}, data in {folder / 's3'}", file=sys.stderr)
        yield BUCKET


def _run_name(material: Material, settings: tuple[str, ...]) -> str:
    """The same material and settings give the same run, so that a second call continues the first."""
    if material.name == "synthetic" and not settings:
        return "demo"
    own = material.settings if material.name != "synthetic" else ()
    text = json.dumps([material.digest, *own, *settings])
    return f"demo-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _run_pipeline(run_uri: str, material: Material, settings: tuple[str, ...]) -> None:
    given = {override_keys(setting) for setting in settings}
    brought = (each for each in material.settings if override_keys(each) not in given)
    request = PipelineRequest(
        "pretrain", run_uri, "demo", material.slides_uri, settings=(*brought, *settings)
    )
    try:
        run_locally(request)
    except EosinError as error:
        if "was begun with another configuration" in error.message:  # by another version of the demo
            error.hint = "take another folder: eosin demo --folder OTHER, or remove this one"
        of_demo = "make demo SLIDES=… OVERRIDES=FILE (--overrides)"
        error.hint = re.sub(r"slides\.overrides(=URI)?", of_demo, error.hint)
        raise


def _fetch_report(run_uri: str, demo_folder: Path) -> DemoResult:
    from eosin.summary.terminal import terminal_table

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
        raise PermanentError(
            f"the run ended without {error.args[0]}", hint=f"eosin logs {shlex.quote(run_uri)}"
        ) from None
    table = terminal_table(store.get(RunLayout.SUMMARY_JSON))
    return DemoResult(
        run=run_uri,
        report=str(folder / "summary.html"),
        teacher=str(folder / teacher),
        table=table,
        look=", ".join(
            demo_command(demo_folder, each) for each in ("status", f"exec eosin logs {shlex.quote(run_uri)}")
        ),
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
            f"the disk of {folder} has {size_text(free_bytes)} free, "
            f"and the demo wants {size_text(NEEDED_BYTES)}",
            hint=_HINT,
        )
    try:
        yield
    except EosinError as error:
        usage = shutil.disk_usage(folder)
        # The server stops taking objects a little before the disk is at its end.
        if usage.free < max(_FULL_BYTES, _FULL_SHARE * usage.total):
            raise UserError(
                f"the disk of {folder} is full ({size_text(usage.free)} free): {error.message}", hint=_HINT
            ) from error
        raise


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
            tied = partial(die_with_parent, os.getpid())
            return subprocess.run([*program, *command[1:]], preexec_fn=tied).returncode
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
