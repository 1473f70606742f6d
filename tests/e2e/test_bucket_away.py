"""A bucket that is away in the middle of a step: the server is stopped, and comes back with what it held."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from eosin import steps
from eosin.demo.server import LocalS3
from eosin.demo.synthetic import SyntheticConfig, write_dataset
from eosin.index.snapshot import open_snapshot
from eosin.layout import RunLayout
from eosin.records import MetricRecord, PatchSetManifest, load_record
from eosin.runs import load_pin
from eosin.storage import open_store
from tests.support.demo import TINY
from tests.support.faults import Fault, FaultProxy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
BUCKET = "s3://away"
RUN = f"{BUCKET}/runs/a"
SLIDES = 6
# The step, and the request of its n-th of which the server goes: method and part of the key, n.
STAGES = {
    "index_shard": ("GET", "/slides/slide-", 5),
    "decode": ("GET", "/slides/slide-", 3),
    "evaluate_shard": ("PUT", "/metrics/", 1),
}
QUICK = {"EOSIN_RETRY_DEADLINE_S": "2", "EOSIN_RETRY_CAP_S": "0.5"}


class Outage:
    """Plan of a proxy: at the chosen request the server behind it is stopped, so that no more pass."""

    def __init__(self, server: LocalS3, method: str, part: str, number: int) -> None:
        self.begun = threading.Event()
        self._server, self._chosen, self._left = server, (method, part), number

    def __call__(self, method: str, path: str) -> Fault:
        self._left -= method == self._chosen[0] and self._chosen[1] in path
        if self._left <= 0 and not self.begun.is_set():
            self._server.stop()
            self.begun.set()
        return Fault.NONE


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalS3]:
    """A server of the test's own, with slides, labelled patches and a run whose scan is opened."""
    config = SyntheticConfig(num_slides=SLIDES, width_px=1500, height_px=1500, labelled_patients=4,
                             labelled_per_class=4, seed=5)  # fmt: skip
    made = tmp_path / "made"
    write_dataset(made, config, num_workers=1)
    with LocalS3(tmp_path / "s3") as started:
        for name, value in started.env.items():
            monkeypatch.setenv(name, value)
        started.ensure_bucket(BUCKET)
        store = open_store(BUCKET)
        for path in filter(Path.is_file, made.rglob("*")):
            data = path.read_bytes()
            if path.suffix == ".json":
                data = data.replace(made.as_uri().encode(), BUCKET.encode())
            store.put(path.relative_to(made).as_posix(), data)
        tasks = [{"kind": "knn", "name": "textures", "dataset": f"{BUCKET}/labelled", "k": 3},
                 {"kind": "unsupervised", "name": "heldout"}]  # fmt: skip
        settings = [*TINY, f"evaluate.tasks={json.dumps(tasks)}", f"slides.overrides={BUCKET}/overrides.csv"]
        steps.plan(RUN, steps.ConfigSource("demo", settings, f"{BUCKET}/slides"))
        steps.index_shards(RUN, 1)
        yield started


def run_step(stage: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """The step in a process of its own, as a pod has it."""
    code = f"from eosin import steps; steps.as_step(steps.{stage}, {RUN!r}, 0, 1)"
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **environment},
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def run_through_an_outage(
    server: LocalS3, stage: str, away_s: float, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Exit code and standard error of the step, in the middle of which the server is away for `away_s`."""
    outage = Outage(server, *STAGES[stage])
    with FaultProxy(server.endpoint_url, outage) as proxy:
        process = run_step(stage, {"AWS_ENDPOINT_URL_S3": proxy.endpoint_url, **environment})
        try:
            assert outage.begun.wait(300), "the step ended, or stands, before the chosen request"
            time.sleep(away_s)
            assert process.poll() in (None, 75), "it ended as if nothing were missing"
            server.start()
            proxy.upstream = urlsplit(server.endpoint_url).netloc
            _, error = process.communicate(timeout=900)
        finally:
            process.kill()
    return process.returncode, error


@pytest.mark.parametrize(
    ("away_s", "windows"), [(6, QUICK), pytest.param(60, {}, marks=pytest.mark.long)], ids=["6 s", "60 s"]
)
def test_every_step_waits_for_its_bucket_or_ends_75_and_goes_on(
    server: LocalS3, away_s: float, windows: dict[str, str]
) -> None:
    for stage in STAGES:
        impatient, patient = ({**windows, "EOSIN_STEP_PATIENCE_S": text} for text in ("0", "1800"))
        code, error = run_through_an_outage(server, stage, away_s, impatient)
        assert code == 75 and "error: " in error and "Traceback" not in error, f"{stage}: {code} {error}"
        code, error = run_through_an_outage(server, stage, away_s, patient)
        assert code == 0 and "given_up_at" in error, f"{stage}: {code} {error}"
        if stage == "index_shard":
            steps.snapshot(RUN, 1)
    store = open_store(RUN)
    assert open_snapshot(load_pin(RUN).index_uri, load_pin(RUN).snapshot_id).manifest.num_ok == SLIDES
    patches = load_record(PatchSetManifest, store, RunLayout.patch_set_manifest("heldout"))
    assert patches is not None and patches.num_patches == 24 and not patches.rejected
    records = [load_record(MetricRecord, store, info.key) for info in store.list(RunLayout.METRICS)]
    assert {(each.task, each.status) for each in records if each} == {("textures", "ok"), ("heldout", "ok")}
    assert [info.key for info in store.list(RunLayout.FAILURES)] == []
