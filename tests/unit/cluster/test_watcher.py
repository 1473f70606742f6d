"""What the watcher ends, and what the run says of it afterwards."""

from pathlib import Path
from typing import Any, cast

import pytest

from eosin.cluster.api import Cluster
from eosin.cluster.names import FOLLOWED_ANNOTATION, JOBSET, WORKFLOW
from eosin.cluster.watcher import Watcher
from eosin.config import RunConfig
from eosin.observability import RunLog
from eosin.runs import prepare_run
from eosin.status import read_logs, run_status
from eosin.storage import Store, open_store


class FakeCluster:
    """One JobSet that a Workflow owns."""

    def __init__(self) -> None:
        owner = {"apiVersion": WORKFLOW.api_version, "kind": "Workflow", "name": "w", "uid": "u"}
        self.job: Any = {"metadata": {"name": "j", "annotations": {}, "ownerReferences": [owner]}}
        self.workflow: Any = {"metadata": {"name": "w"}, "spec": {}}
        self.deleted = 0

    def get(self, kind: Any, name: str) -> Any:
        return {JOBSET: self.job, WORKFLOW: self.workflow}[kind]

    def delete(self, kind: Any, job: Any, *, propagation: str) -> None:
        assert (kind, propagation) == (JOBSET, "Foreground")
        self.deleted += 1


@pytest.fixture
def run(tmp_path: Path) -> str:
    uri = str(tmp_path / "run")
    prepare_run(uri, RunConfig.model_validate({"slides": {"uri": str(tmp_path)}}))
    return uri


def watcher(cluster: FakeCluster, store: Store, now_s: list[float]) -> Watcher:
    return Watcher(cast(Cluster, cluster), "j", 3600, RunLog("watcher", store), lambda: now_s[0])


@pytest.mark.parametrize("reason", ["its run was terminated", "no launcher has followed it"])
def test_what_was_ended_and_why_is_in_status_and_logs(run: str, reason: str) -> None:
    cluster, now_s = FakeCluster(), [0.0]
    cluster.job["metadata"]["annotations"][FOLLOWED_ANNOTATION] = "once"
    made = watcher(cluster, open_store(run), now_s)
    assert made.look() and not cluster.deleted and not run_status(run).failures
    if "terminated" in reason:
        cluster.workflow["spec"]["activeDeadlineSeconds"] = 0
    else:
        now_s[0] = 4000
    made.look()
    assert cluster.deleted == 1
    (failure,) = run_status(run).failures
    assert failure.step == "train" and reason in failure.message and "eosin resume" in failure.hint
    assert reason in str(run_status(run))
    (line,) = read_logs(run, "watcher")
    assert line.fields["event"] == "ending" and reason in line.fields["reason"]


def test_a_run_that_cannot_be_written_does_not_keep_a_training_going(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, store = FakeCluster(), open_store(run)
    cluster.workflow["spec"]["activeDeadlineSeconds"] = 0

    def broken(*_: object, **__: object) -> None:
        raise OSError("away")

    monkeypatch.setattr(store, "put", broken)
    assert watcher(cluster, store, [0.0]).look() and cluster.deleted == 1
