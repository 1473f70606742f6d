"""The pipelines of tiles and features as pods, one of which is lost, against the same on this machine."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from eosin import steps
from eosin.cluster.api import Cluster
from eosin.config.cluster import TaskPodConfig
from eosin.evaluation.embed_index import EmbedRequest
from eosin.kubeflow.parameters import compiled_pipeline
from eosin.kubeflow.task_pods import place
from eosin.layout import FeaturesLayout, RunLayout
from eosin.records import KubeflowRun, load_record
from eosin.storage import Store, open_store
from tests.support.compiled_pods import CompiledPods, Values
from tests.support.evaluation import write_timm_network
from tests.support.indexing import config_for, index, make_slides, upload
from tests.support.real_cluster import IMAGE, apply, make_workflow, serve_bucket

INDEX, MODEL = "s3://bucket/index", "s3://bucket/model"
POD = TaskPodConfig(cpu="10m", memory="1Gi", shm_size="64Mi")
# A part of the set for each patch: what is done when a pod is lost is not done again.
TILES = ["mpp=0.5", "patch_px=64", "patches_per_shard=1"]


@pytest.fixture
def access(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Values:
    """An index and a model in a bucket. Keys are in a Secret, the address in the chart's ConfigMap."""
    env = serve_bucket(cluster)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    about = {"namespace": cluster.namespace}
    keys = {name: value for name, value in env.items() if "KEY" in name}
    address = {name: env[name] for name in ("AWS_ENDPOINT_URL", "AWS_REGION")}
    apply([
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", **about}, "stringData": keys},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "eosin-s3-access", **about},
         "data": address},
    ])  # fmt: skip
    upload(make_slides(tmp_path / "slides"), "s3://bucket/slides")
    index(config_for("s3://bucket/slides", INDEX))
    (tmp_path / "model").mkdir()
    write_timm_network(tmp_path / "model")
    upload(tmp_path / "model", MODEL)
    return {"num_shards": 2, "s3_secret": "keys", "index": INDEX}


def documents(pipeline: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(compiled_pipeline(pipeline).read_text()))


def run(cluster: Cluster, pipeline: str, task: str, arguments: Values, lose_once: Any) -> CompiledPods:
    """The pipeline to its end, with the pod of the first shard deleted once `lose_once` says so."""
    lost: list[str] = []

    def lose(name: str, given: Values, number: int, pod: str) -> None:
        if name == task and given["shard"] == 0 and not lost and lose_once():
            lost.append(pod)
            cluster.read("losing a pod", cluster.core.delete_namespaced_pod, pod, cluster.namespace)

    placed = place(documents(pipeline), {task: POD})
    pods = CompiledPods(cluster, placed, make_workflow(cluster, pipeline), lose)
    assert pods.run(arguments), [(each.task, each.outcome, each.log[-5:]) for each in pods.attempts]
    outcomes = sorted((each.given["shard"], each.outcome) for each in pods.of(task))
    assert outcomes == [(0, "deleted"), (0, "ok"), (1, "ok")]
    return pods


def failures(store: Store) -> list[str]:
    return [info.key for info in store.list("failures")]


def objects(store: Store, prefix: str) -> dict[str, bytes]:
    return {info.key: store.get(info.key) for info in store.list(prefix)}


def test_tiles_are_those_of_this_machine_and_what_is_there_is_left_alone(
    cluster: Cluster, access: Values
) -> None:
    tiles, prefix = open_store("s3://bucket/tiles"), RunLayout.patch_set("grid")
    kept: dict[str, float] = {}

    def begun() -> bool:
        kept.update(
            {info.key: info.modified_s for info in tiles.list(prefix) if info.key.endswith(".parquet")}
        )
        return bool(kept)

    asked = {**access, "run": tiles.uri, "train_image": IMAGE, "settings": TILES}
    pods = run(cluster, "decode", "decode-tiles", asked, begun)
    steps.decode_index(INDEX, "s3://bucket/here", 0, 1, "grid", TILES)
    assert objects(tiles, prefix) == objects(open_store("s3://bucket/here"), prefix)
    times_s = {info.key: info.modified_s for info in tiles.list(prefix)}
    assert {key: times_s[key] for key in kept} == kept
    assert failures(tiles) == [] and [each.outcome for each in pods.of("finish")] == ["ok"]


def test_features_are_those_of_this_machine(cluster: Cluster, access: Values) -> None:
    features = open_store("s3://bucket/features")
    model = f"timm:test_vit@{MODEL}/weights.safetensors"
    settings = ["mpp=0.5", "patch_px=64"]
    asked = {**access, "run": features.uri, "evaluate_image": IMAGE, "model": model, "settings": settings}
    run(cluster, "embed", "embed-tiles", asked, lambda: True)
    here = "s3://bucket/here"
    steps.embed(EmbedRequest(model, here, INDEX, settings=tuple(settings)), 0, 1)
    assert objects(features, FeaturesLayout.FEATURES) == objects(open_store(here), FeaturesLayout.FEATURES)
    assert features.get(FeaturesLayout.MANIFEST) == open_store(here).get(FeaturesLayout.MANIFEST)
    assert failures(features) == []


def test_what_a_task_refuses_is_where_people_look_and_the_same_again_goes_on(
    cluster: Cluster, access: Values
) -> None:
    """In the pod's message and in the bucket, by a user without rights on a root that is read-only."""
    tiles = open_store("s3://bucket/tiles")
    asked = {**access, "run": tiles.uri, "train_image": IMAGE, "num_shards": 1}
    pods = CompiledPods(cluster, documents("decode"), make_workflow(cluster, "refused"))
    assert not pods.run({**asked, "settings": ["mpp=none"]})
    (refused,), (finished,) = pods.of("decode-tiles"), pods.of("finish")
    ended = refused.pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended["exitCode"] == 2 and "patches.sets.grid.mpp" in ended["message"]
    assert finished.outcome == "ok" and failures(tiles) == ["failures/decode-tiles-00000.json"]
    pods = CompiledPods(cluster, documents("decode"), make_workflow(cluster, "mended"))
    assert pods.run({**asked, "settings": ["mpp=1.0"]}) and failures(tiles) == []
    noted = load_record(KubeflowRun, tiles, RunLayout.KUBEFLOW_RUN)
    assert noted == KubeflowRun(namespace=cluster.namespace, run_id="mended", workflow="mended")
