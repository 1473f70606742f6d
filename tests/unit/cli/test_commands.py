"""The command line as a person uses it: help, pipes, slips of the hand, and how each verb ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from eosin import preflight, steps
from eosin.cli.app import invoke
from eosin.errors import EXIT_USER, MissingDependency, as_user_error
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import IndexPin, Study, TrainingDone, Variant
from eosin.runs import load_run, pin_index
from eosin.storage import open_store


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "a.svs").write_bytes(b"never opened")
    return folder


@pytest.fixture
def run(slides: Path, tmp_path: Path) -> str:
    uri = str(tmp_path / "runs" / "a")
    steps.plan(uri, steps.ConfigSource("demo", (), str(slides)))
    return uri


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert invoke(list(arguments)) == EXIT_USER
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", ["", "index", "run", "recipes", "recipes show", "demo", "registry", "delete"]
)
def test_dash_h_is_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert invoke([*verb.split(), "-h"]) == 0
    assert "Usage: " in capsys.readouterr().out


def test_shells_can_complete(capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["--help"])
    assert "--install-completion" in capsys.readouterr().out


def test_a_reader_that_has_enough_is_no_error() -> None:
    code = "import sys; from eosin.cli.app import main; sys.argv[1:] = ['recipes', 'show', 'demo']; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    error = process.stderr.read().decode()
    assert (process.wait(), error) == (0, "")


def test_an_option_that_wants_a_number_says_so_in_our_words(
    capsys: pytest.CaptureFixture[str], run: str
) -> None:
    said = refused(capsys, "train", run, "--prolong", "abc")
    assert "'--prolong': must be a whole number (given: 'abc')" in said
    invoke(["train", run, "--prolong", "abc", "--json"])
    assert "must be a whole number (given: 'abc')" in capsys.readouterr().out


def test_one_folder_for_two_things_is_refused_and_left_as_it_is(
    capsys: pytest.CaptureFixture[str], slides: Path
) -> None:
    said = refused(capsys, "index", "--slides", str(slides), "--index", f"{slides}/")
    assert f"slides and index are both {slides.as_uri()}" in said
    begin = ["run", "demo", "--local", "--dry-run", "--slides", str(slides)]
    assert "slides and run are both" in refused(capsys, *begin, "--run", str(slides))
    sources = f"slides.sources=[{{uri: {slides}}}]"
    said = refused(capsys, "index", "--set", sources, "--index", str(slides))
    assert f"slides and index are both {slides.as_uri()}" in said
    elsewhere = f"{slides}-elsewhere"
    assert "index and run are both" in refused(capsys, *begin, "--run", elsewhere, "--index", elsewhere)
    assert [path.name for path in slides.iterdir()] == ["a.svs"]


def test_an_index_given_for_a_run_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "LATEST.json").write_text("{}")
    assert f"that is an index: eosin index inspect {tmp_path}" in refused(capsys, "status", str(tmp_path))


def test_a_mistyped_folder_of_slides_leaves_nothing_behind(
    capsys: pytest.CaptureFixture[str], slides: Path, tmp_path: Path
) -> None:
    before = set(tmp_path.rglob("*"))
    arguments = ["run", "demo", "--local", "--run", f"{tmp_path}/runs/a", "--slides", f"{slides}s"]
    assert f"did you mean {slides}?" in refused(capsys, *arguments)
    assert set(tmp_path.rglob("*")) == before


def test_options_that_a_run_would_ignore_are_refused(capsys: pytest.CaptureFixture[str], run: str) -> None:
    arguments = ["index", "--run", run, "--set", "index.max_mpp=1", "--slides", "/x"]
    assert "--slides, --set and --run contradict" in refused(capsys, *arguments)


_SUBMIT = ["submit", "pretrain", "--run", "s3://b/r"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["index", "--set", "index.max_mpp=1", "--set", "index.max_mpp=2"],
         "index.max_mpp=1 and index.max_mpp=2 contradict"),
        (["index", "--set", "index.max_mpp=1", "--set", "index={}"], "contradict: both set index.max_mpp"),
        (["index", "--slides", "/a", "--index", "/i", "--set", "slides.uri=/b"], "both set slides.uri"),
        (["decode", "--index", "/i", "--out", "/o", "--set", "mpp=1", "--set", "mpp=2"], "mpp=1 and mpp=2"),
        (["train", "/r", "--set", "train.optimizer.lr=1", "--set", "train.optimizer.lr=2"],
         "lr=2 contradict"),
        (["index", "pictures", "/i", "--out", "/o", "--set", "patches.mpp=[1]", "--set", "patches.mpp=[2]"],
         "mpp=[2] contradict"),
        ([*_SUBMIT, "--param", "recipe=a", "--param", "recipe=b"], "recipe=a and recipe=b"),
        ([*_SUBMIT, "--pod", "train.cpu=1", "--pod", "train.cpu=2"], "train.cpu=1 and train.cpu=2"),
        ([*_SUBMIT, "--run", "s3://b/s"], "--run is given twice: s3://b/r and s3://b/s"),
        ([*_SUBMIT, "--slides=s3://b/s", "--slides", "s3://b/t"], "--slides is given twice"),
        ([*_SUBMIT, "--recipe", "demo", "--param", "recipe=tcga"], "--param recipe is 'tcga'"),
    ],
)  # fmt: skip
def test_one_thing_said_twice_is_refused_with_both(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert words in refused(capsys, *arguments)


def test_the_same_said_twice_is_no_contradiction(capsys: pytest.CaptureFixture[str], slides: Path) -> None:
    twice = ["--set", "train.num_steps=70"] * 2 + ["--run", f"{slides}/../r"] * 2
    assert invoke(["run", "demo", "--local", "--dry-run", *twice, "--slides", str(slides)]) == 0
    assert "num_steps: 70" in capsys.readouterr().out


def test_logs_of_a_source_there_is_not_name_those_there_are(
    capsys: pytest.CaptureFixture[str], run: str
) -> None:
    assert "logged nothing yet" in refused(capsys, "logs", run, "--source", "train")
    with RunLog("index-00000", open_store(run)) as log:
        log.event("scanned")
    assert invoke(["logs", run, "--source", "index"]) == 0
    capsys.readouterr()
    error = refused(capsys, "logs", run, "--source", "nope")
    assert "no log of 'nope'" in error and "there are: index-00000" in error


def test_models_and_tasks_there_are_not_name_those_there_are(
    capsys: pytest.CaptureFixture[str], run: str
) -> None:
    open_store(run).put(RunLayout.teacher_card("step-00000060"), b"{}")
    error = refused(capsys, "evaluate", run, "--model", "nope", "--task", "heldout")
    assert "no model 'nope'" in error and "there are: random-init, step-00000060" in error
    error = refused(capsys, "evaluate", run, "--task", "nope")
    assert "no task 'nope'" in error and "there are: heldout" in error


@pytest.mark.parametrize("verb", [["train"], ["evaluate"]])
def test_without_torch_it_is_refused_at_once_with_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: str, verb: list[str]
) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == "torch" else object())
    error = refused(capsys, *verb, run)
    assert "torch is not installed" in error and ("[train]" in error or "[evaluate]" in error)


def test_a_local_run_without_torch_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, slides: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == "torch" else object())
    run = f"{tmp_path}/runs/a"
    assert "torch is not installed" in refused(
        capsys, "run", "demo", "--local", "--run", run, "--slides", str(slides)
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("module", "extra"), [("torch.nn", "train"), ("kfp", "kubeflow"), ("h5py", "datasets")]
)
def test_a_library_of_an_extra_that_is_missing_is_named_with_it(module: str, extra: str) -> None:
    error = as_user_error(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert isinstance(error, MissingDependency) and f"[{extra}]" in error.hint


def test_a_module_of_nobody_stays_the_error_it_is() -> None:
    error = ModuleNotFoundError("No module named 'nope'", name="nope")
    assert as_user_error(error) is error


def test_status_ends_with_the_next_command(capsys: pytest.CaptureFixture[str], run: str) -> None:
    invoke(["status", run, "--no-live"])
    assert f"next: eosin index --run {run}" in capsys.readouterr().out
    pin_index(run, IndexPin(index_uri="i", snapshot_id="1"))
    invoke(["status", run, "--no-live"])
    assert f"next: eosin decode {run}" in capsys.readouterr().out


def test_status_of_a_study_counts_its_runs(capsys: pytest.CaptureFixture[str], run: str) -> None:
    store, config = open_store(run), load_run(run)
    variants = [Variant(name=name, value=name, run=f"{run}/variants/{name}", untrained="random-init")
                for name in ("a", "b")]  # fmt: skip
    study = Study(key="train.method", variants=tuple(variants), heldout=f"{run}/patches/heldout")
    store.put(RunLayout.STUDY, study.to_json())
    done = TrainingDone(
        num_steps=20, models=("step-00000020",), snapshot_id="1", config_digest=config.digest()
    )
    open_store(variants[0].run).put(RunLayout.TRAINING_DONE, done.to_json())
    invoke(["status", run, "--no-live"])
    out = capsys.readouterr().out
    assert "study of train.method" in out and "1 of 2 runs trained" in out and "0/180" not in out


def test_index_ends_with_what_was_found_and_where(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from eosin.demo.synthetic import SyntheticConfig
    from tests.support.patches import write_slide

    write_slide(tmp_path / "slides" / "a.svs", seed=1, config=SyntheticConfig(width_px=1024, height_px=1024))
    (tmp_path / "slides" / "b.svs").write_bytes(b"")
    index = f"file://{tmp_path}/an index"
    assert invoke(["index", "--slides", f"{tmp_path}/slides", "--index", index]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 slides can be used" in out and "left out: 1 empty-file" in out
    assert f"next: eosin index inspect '{index}'" in out
    assert invoke(["index", "--slides", f"{tmp_path}/slides", "--index", index, "--shard", "0/2"]) == 0
    assert "--merge N" in capsys.readouterr().out


def test_far_fewer_slides_name_the_option_of_the_verb(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from eosin.demo.synthetic import SyntheticConfig
    from tests.support.patches import write_slide

    for folder, number in (("many", 3), ("few", 1)):
        (tmp_path / folder).mkdir()
        for seed in range(number):
            config = SyntheticConfig(width_px=1024, height_px=1024)
            write_slide(tmp_path / folder / f"{seed}.svs", seed=seed, config=config)
    index = ("--index", f"{tmp_path}/index")
    assert invoke(["index", "--slides", f"{tmp_path}/many", *index]) == 0
    error = refused(capsys, "index", "--slides", f"{tmp_path}/few", *index)
    assert "has 1 usable slide" in error and "--allow-fewer" in error and "--set" not in error
    assert invoke(["index", "--slides", f"{tmp_path}/few", *index, "--allow-fewer"]) == 0


def test_the_demos_bucket_without_its_server_names_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    error = refused(capsys, "status", "s3://eosin-demo/runs/demo")
    assert "eosin demo exec -- eosin status s3://eosin-demo/runs/demo" in error
