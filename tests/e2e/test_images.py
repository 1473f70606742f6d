"""The images, built on a base of Debian's packages and run as user 10001 with a read-only root."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from eosin.demo.server import LocalS3
from eosin.demo.synthetic import SyntheticConfig, write_dataset
from eosin.index.snapshot import open_snapshot
from eosin.layout import RunLayout
from eosin.records import MetricRecord, TrainingDone, load_record
from eosin.storage import open_store
from tests.support import images
from tests.support.demo import TINY
from tests.support.images import ImageStore
from tests.support.summary import fake_run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(bool(images.missing()), reason=images.missing()),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    opened = ImageStore(tmp_path_factory.mktemp("images"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def printed(store: ImageStore) -> str:
    """What the build of the index image printed."""
    return store.build("index")


@pytest.fixture
def slides_uri(bucket_uri: str, tmp_path: Path) -> str:
    """Two synthetic slides in the bucket."""
    config = SyntheticConfig(
        num_slides=2, width_px=1200, height_px=1100, labelled_patients=3, labelled_per_class=3, seed=5
    )
    write_dataset(bucket_uri, config)
    return f"{bucket_uri}/slides"


def copy_to_bucket(folder: Path, bucket_uri: str) -> None:
    """Every file below the folder, and in its JSON and YAML the folder's URI made the bucket's."""
    target = open_store(bucket_uri)
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix in (".json", ".yaml"):
                data = data.replace(folder.as_uri().encode(), bucket_uri.encode())
            target.put(path.relative_to(folder).as_posix(), data)


def sizes_mb(text: str) -> dict[str, tuple[int, int]]:
    """{image: (MB on a node's disk, MB that a node with the images before lacks)} of what a build printed."""
    found = re.findall(r"eosin/(\w+):\S+: ([\d,]+) MB(?:, ([\d,]+) MB more)?", text)
    return {
        name: (int(size.replace(",", "")), int((more or size).replace(",", ""))) for name, size, more in found
    }


def test_index_image_reads_slides_and_writes_reports(
    store: ImageStore, printed: str, slides_uri: str, bucket_uri: str, s3: LocalS3, tmp_path: Path
) -> None:
    assert sizes_mb(printed)["index"][0] <= 505, printed[-300:]
    (tmp_path / "finished").mkdir()
    fake_run(tmp_path / "finished")
    copy_to_bucket(tmp_path / "finished", bucket_uri)
    run_uri = f"{bucket_uri}/runs/demo"
    with store.container("index") as container:
        who = container.run("sh", "-c", "id -u; touch /tmp/x && echo written; touch /opt/x")
        assert who.stdout.split() == [str(images.USER_ID), "written"]
        assert "Read-only file system" in who.stderr

        doctor = container.run("eosin", "doctor", "--uri", bucket_uri, env=s3.env)
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        assert "compiled" in doctor.stdout

        index_uri = f"{bucket_uri}/index"
        command = ("eosin", "index", "--slides", slides_uri, "--index", index_uri, "--json")
        overrides = f"slides.overrides={bucket_uri}/overrides.csv"
        done = container.run(*command, "--set", overrides, env=s3.env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert open_snapshot(index_uri).manifest.num_ok == 2

        report = container.run("eosin", "summarize", run_uri, env=s3.env)
        assert report.returncode == 0, report.stdout + report.stderr
    assert "<svg" in open_store(run_uri).get(RunLayout.SUMMARY_HTML).decode()


@pytest.mark.long
def test_the_three_images_take_a_run_from_slides_to_report(
    store: ImageStore, printed: str, slides_uri: str, bucket_uri: str, s3: LocalS3
) -> None:
    sizes = sizes_mb(printed + store.build("train", "evaluate"))
    print(f"MB on disk, and more for a node that has those before: {sizes}")
    assert sizes["train"][0] + sizes["evaluate"][1] < 7_500 and sizes["evaluate"][1] < 1_000, sizes
    run_uri = f"{bucket_uri}/runs/images"
    labelled = f"{bucket_uri}/labelled"
    tasks = [{"kind": "knn", "name": "textures-knn", "dataset": labelled, "k": 5}]
    settings = [*TINY, f"evaluate.tasks={json.dumps(tasks)}", f"slides.overrides={bucket_uri}/overrides.csv"]
    source = f"steps.ConfigSource('demo', {settings!r}, {slides_uri!r}, '')"
    plan = f"from eosin import steps; steps.as_step(steps.plan, {run_uri!r}, {source})"
    for image, command in (
        ("index", ("python", "-c", plan)),
        ("index", ("eosin", "index", "--run", run_uri)),
        ("train", ("eosin", "train", run_uri)),
        ("evaluate", ("eosin", "evaluate", run_uri, "--task", "textures-knn")),
        ("index", ("eosin", "summarize", run_uri)),
    ):
        with store.container(image) as container:
            done = container.run(*command, env=s3.env)
            assert done.returncode == 0, f"{image}: {command}\n{done.stdout}\n{done.stderr}"
    published = open_store(run_uri)
    trained = load_record(TrainingDone, published, RunLayout.TRAINING_DONE)
    assert trained.num_steps == 6
    records = [
        info.key for info in published.list(RunLayout.METRICS) if info.key.endswith("textures-knn.json")
    ]
    assert len(records) >= 2
    assert {load_record(MetricRecord, published, key).status for key in records} == {"ok"}
    logs = b"".join(published.get(info.key) for info in published.list(RunLayout.LOGS)).decode()
    assert '"world_size": 2' in logs
    assert published.exists(RunLayout.SUMMARY_HTML)
