"""The Helm chart over a matrix of values: valid objects, least permissions, nothing misspelt."""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from eosin.cli.app import invoke
from eosin.cluster import names
from eosin.cluster.cluster_checks import LAUNCHER_PERMISSIONS, WATCHER_PERMISSIONS
from eosin.cluster.defaults import CONFIG_MAP, KEY, with_defaults
from eosin.cluster.jobset import render_jobset
from eosin.config import RunConfig, load_config
from eosin.config.cluster import ClusterConfig
from tests.support.kubeflow import kubeflow_server
from tests.support.kubernetes import built_in_errors, check_golden, crd_errors, load_all
from tests.support.tools import run

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "eosin"
GOLDEN = Path(__file__).parent / "golden" / "chart"
IMAGES = {image: f"reg/{image}@sha256:{'0' * 64}" for image in ("index", "train", "evaluate")}
FULL: dict[str, Any] = {
    "images": {**IMAGES, "pullSecrets": ["registry"]},
    "s3": {"runs": "s3://b/runs", "existingSecret": "keys", "endpointUrl": "https://s3.example",
           "region": "eu-1", "caConfigMap": "ca"},
    "serviceAccounts": {"train": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/r"}}},
    "launcher": {"serviceAccounts": ["pipeline-runner", "default-editor"], "listNodes": True},
    "cluster": {"shm_size": "32Gi", "s3": {"region": "eu-2"}, "pools": [
        {"name": "anchor", "gpus_per_node": 8}, {"name": "spot", "spot": True, "max_nodes": 4}]},
    "taskPods": {"evaluate": {"gpus": 1, "gpu_resource": "nvidia.com/mig-1g.10gb"}, "decode": {"gpus": 1}},
    "queue": {"create": True, "name": "gpus", "clusterQueue": "all"},
    "schedule": {"enabled": True, "parameters": {
        "registry": "s3://b/registry", "name": "he", "recipe": "vits16-dinov2", "settings": ["seed=1"],
        "min_new_slides": 50}},
    "kubeflow": {"userNamespace": "pathology"},
    "monitoring": {"podMonitor": {"enabled": True, "labels": {"release": "prom"}},
                   "rules": {"enabled": True, "labels": {"release": "prom"}}, "dashboard": {"enabled": True}},
    "commonLabels": {"team": "pathology"},
}  # fmt: skip
MATRIX: dict[str, dict[str, Any]] = {
    "default": {},
    "full": FULL,
    "static-keys": {"s3": {"accessKeyId": "AK", "secretAccessKey": "SK"}},
    "nothing-made": {
        "serviceAccounts": {name: {"create": False} for name in ("train", "steps", "watcher")},
        "priorityClasses": {"create": False},
        "networkPolicy": {"enabled": False},
    },
    "dashboard-alone": {"monitoring": {"dashboard": {"enabled": True}}},
}
_OF_THE_PROMETHEUS_OPERATOR = {"PodMonitor": "podmonitors", "PrometheusRule": "prometheusrules"}


def helm(values: dict[str, Any], tmp_path: Path, *, release: str = "eosin", chart: Path = CHART) -> Any:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return run("helm", "template", release, str(chart), "--namespace", "pathology", "-f", str(file))


def render(values: dict[str, Any], tmp_path: Path, **more: Any) -> list[dict[str, Any]]:
    done = helm(values, tmp_path, **more)
    assert done.returncode == 0, done.stderr
    return load_all(done.stdout)


def only(objects: list[dict[str, Any]], kind: str, part: str = "") -> dict[str, Any]:
    (found,) = [item for item in objects if item["kind"] == kind and part in item["metadata"]["name"]]
    return found


def preset(objects: list[dict[str, Any]]) -> ClusterConfig:
    text = only(objects, "ConfigMap", CONFIG_MAP)["data"][KEY]
    return load_config(yaml.safe_dump({"cluster": yaml.safe_load(text)})).cluster


@pytest.mark.parametrize("case", MATRIX)
def test_every_object_is_valid(case: str, tmp_path: Path) -> None:
    for manifest in render(MATRIX[case], tmp_path):
        if manifest["kind"] == "LocalQueue":
            assert crd_errors(manifest, "kueue.x-k8s.io_localqueues.yaml") == []
        elif manifest["kind"] not in _OF_THE_PROMETHEUS_OPERATOR:
            assert built_in_errors(manifest) == [], manifest["kind"]


@pytest.mark.parametrize("kind", _OF_THE_PROMETHEUS_OPERATOR)
def test_what_monitoring_installs_is_valid_for_its_crd(kind: str, tmp_path: Path) -> None:
    crd = f"monitoring.coreos.com_{_OF_THE_PROMETHEUS_OPERATOR[kind]}.yaml"
    assert crd_errors(only(render(FULL, tmp_path), kind), crd) == []


@pytest.mark.parametrize("case", ["default", "full"])
def test_golden(case: str, tmp_path: Path) -> None:
    text = yaml.safe_dump_all(render(MATRIX[case], tmp_path), sort_keys=False, width=120)
    check_golden(GOLDEN / f"{case}.yaml", text, update=os.environ.get("EOSIN_UPDATE_GOLDEN") == "1")


@pytest.mark.parametrize("case", MATRIX)
def test_recommended_labels_on_everything(case: str, tmp_path: Path) -> None:
    for manifest in render(MATRIX[case], tmp_path):
        labels = manifest["metadata"]["labels"]
        wanted = {
            f"app.kubernetes.io/{key}" for key in ("name", "instance", "version", "part-of", "managed-by")
        }
        assert wanted <= labels.keys(), manifest["kind"]
        assert MATRIX[case].get("commonLabels", {}).items() <= labels.items()


@pytest.mark.parametrize("case", MATRIX)
def test_objects_have_names_of_their_own_in_every_release(case: str, tmp_path: Path) -> None:
    for release in ("eosin", "a-release-with-a-name-that-is-as-long-as-helm-lets-it-be"[:53]):
        objects = render(MATRIX[case], tmp_path, release=release)
        keys = [(item["kind"], item["metadata"]["name"]) for item in objects]
        assert len(keys) == len(set(keys))
        assert all(len(name) <= 63 for _, name in keys)


def test_lint_is_clean() -> None:
    done = run("helm", "lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"queue": {"nmae": "x"}}, "nmae"),
        ({"schedul": {}}, "schedul"),
        ({"cluster": {"pools": [{"name": "anchor", "gpu_per_node": 8}]}}, "gpu_per_node"),
        ({"cluster": {"shm_size": "lots"}}, "shm_size"),
        ({"cluster": {"pools": [{"required_topology": "a rack"}]}}, "required_topology"),
        ({"cluster": {"pools": [{"topology": "rack"}]}}, "topology"),
        ({"cluster": {"pools": [{"name": "Anchor Pool"}]}}, "name"),
        ({"images": {"train": "reg/train:tag with space"}}, "train"),
        ({"images": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"schedule": {"cron": "daily"}}, "cron"),
        ({"schedule": {"run": "s3://b/runs/always-the-same"}}, "run"),
        ({"s3": {"runs": "/data/runs"}}, "runs"),
        ({"monitoring": {"rules": {"noProgress": "soon"}}}, "noProgress"),
        ({"networkPolicy": {"storePorts": [0]}}, "storePorts"),
        ({"priorityClasses": {"anchor": "high"}}, "anchor"),
        ({"taskPods": {"evaluate": {"gpu": 1}}}, "gpu"),
        ({"taskPods": {"evaluate": {"tolerations": [{"operator": "Maybe"}]}}}, "operator"),
    ],
)
def test_misspelt_or_impossible_value_fails_by_name(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    done = helm(values, tmp_path)
    assert done.returncode != 0
    assert words in done.stderr


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schedule": {"enabled": True}, "images": IMAGES}, "s3.runs"),
        ({"schedule": {"enabled": True}, "s3": {"runs": "s3://b/r"}, "images": IMAGES}, "registry and name"),
        (
            {"schedule": {"enabled": True}, "s3": {"runs": "s3://b/r"}},
            "images.index is empty: run `make publish`",
        ),
        (
            {
                "schedule": {"enabled": True},
                "s3": {"runs": "s3://b/r"},
                "images": {name: IMAGES[name] for name in ("index", "train")},
            },
            "images.evaluate is empty: run `make publish`",
        ),
        (
            {
                "schedule": {"enabled": True, "parameters": {"registry": "s3://b/r", "name": "x"}},
                "s3": {"runs": "s3://b/r"},
            },
            "make publish",
        ),
        ({"s3": {"accessKeyId": "AK"}}, "s3.secretAccessKey"),
    ],
)
def test_values_that_need_another_say_which(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    done = helm(values, tmp_path)
    assert done.returncode != 0
    assert words in done.stderr


@pytest.mark.parametrize(
    ("role", "permissions"),
    [("launcher", LAUNCHER_PERMISSIONS), ("watcher", WATCHER_PERMISSIONS)],
)
def test_each_role_grants_exactly_what_is_done(role: str, permissions: Any, tmp_path: Path) -> None:
    granted = sorted(
        (group, resource, sorted(rule["verbs"]), *rule.get("resourceNames", [""]))
        for rule in only(render({}, tmp_path), "Role", role)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    )
    assert granted == sorted((group, res, sorted(verbs), name) for group, res, verbs, name in permissions)


def test_every_launcher_account_is_bound_and_no_pod_of_training(tmp_path: Path) -> None:
    objects = render(FULL, tmp_path)
    bound = [subject["name"] for subject in only(objects, "RoleBinding", "launcher")["subjects"]]
    assert bound == ["pipeline-runner", "default-editor", "eosin-steps"]
    assert not any(item["kind"] == "ClusterRole" for item in render({}, tmp_path))


def test_presets_reach_the_jobset(tmp_path: Path) -> None:
    site = preset(render(FULL, tmp_path))
    config = RunConfig(cluster=with_defaults(ClusterConfig(), site))
    jobset = render_jobset(config, "s3://b/runs/one", image=config.cluster.image)
    assert [job["name"] for job in jobset["spec"]["replicatedJobs"]] == ["rdzv", "anchor", "spot"]
    pods = [job["template"]["spec"]["template"]["spec"] for job in jobset["spec"]["replicatedJobs"]]
    assert pods[1]["priorityClassName"] == "pathology-eosin-anchor"
    assert pods[2]["priorityClassName"] == "pathology-eosin-spot"
    assert pods[1]["containers"][0]["image"] == IMAGES["train"]
    assert (site.s3.secret, site.s3.region, site.s3.ca_config_map) == ("keys", "eu-2", "ca")
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"


def test_steps_are_told_endpoint_and_region_by_the_name_that_pipelines_look_for(tmp_path: Path) -> None:
    from eosin_pipelines.defaults import S3_CONFIG_MAP

    data = only(render(FULL, tmp_path), "ConfigMap", S3_CONFIG_MAP)["data"]
    assert data == {"AWS_ENDPOINT_URL": "https://s3.example", "AWS_REGION": "eu-1"}


def test_helm_test_goes_the_way_of_the_steps(tmp_path: Path) -> None:
    from eosin_pipelines.defaults import S3_CONFIG_MAP

    pod = next(item for item in render(FULL, tmp_path) if item["metadata"]["name"] == "eosin-test")["spec"]
    (doctor,) = [each for each in pod["containers"] if each["name"] == "doctor"]
    assert pod["serviceAccountName"] == "pipeline-runner" and doctor["image"] == IMAGES["index"]
    sources = [each["valueFrom"]["configMapKeyRef"]["name"] for each in doctor["env"] if "valueFrom" in each]
    assert set(sources) == {S3_CONFIG_MAP}
    assert doctor["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_no_default_asks_for_gpus_that_a_cluster_may_not_have(tmp_path: Path) -> None:
    values = {**FULL, "taskPods": {}}
    (create,) = only(render(values, tmp_path), "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert not [part for part in create["command"] if part.startswith("--pod")]


def test_run_overrules_the_preset(tmp_path: Path) -> None:
    site = preset(render(FULL, tmp_path))
    assert with_defaults(ClusterConfig(shm_size="1Gi"), site).shm_size == "1Gi"
    assert with_defaults(ClusterConfig(), site).shm_size == "32Gi"


@pytest.mark.parametrize("case", MATRIX)
def test_presets_name_only_what_the_chart_makes_or_was_told_of(case: str, tmp_path: Path) -> None:
    objects = render(MATRIX[case], tmp_path)
    site = preset(objects)
    made = {(item["kind"], item["metadata"]["name"]) for item in objects}
    for name in filter(None, (site.priority_class, site.spot_priority_class)):
        assert ("PriorityClass", name) in made
    if site.s3.secret and site.s3.secret != "keys":
        assert ("Secret", site.s3.secret) in made


def test_network_policy_selects_the_training_pods_and_nothing_else(tmp_path: Path) -> None:
    policy = only(render({}, tmp_path), "NetworkPolicy", "train")["spec"]
    selector = policy["podSelector"]["matchLabels"]
    assert selector.items() <= names.labels("any").items()
    others = [item for item in render(FULL, tmp_path) if item["kind"] in {"Pod", "CronJob"}]
    assert not any(selector.items() <= item["metadata"]["labels"].items() for item in others)


def test_restricted_pod_security_of_the_charts_own_pods(tmp_path: Path) -> None:
    objects = render(FULL, tmp_path)
    schedule = only(objects, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    pods = [item["spec"] for item in objects if item["kind"] == "Pod"]
    assert len(pods) == 3, "the doctor, and one pod of each further image"
    for pod in (*pods, schedule):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def at_host(command: list[str], host: str) -> list[str]:
    """The arguments of a container's eosin, for another Kubeflow."""
    assert sum(each.startswith("--host=") for each in command) == 1
    return [f"--host={host}" if each.startswith("--host=") else each for each in command[1:]]


def test_schedule_is_kept_by_the_very_command_of_its_pod(tmp_path: Path) -> None:
    objects = render(FULL, tmp_path)
    (create,) = only(objects, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (delete,) = only(objects, "Job", "unschedule")["spec"]["template"]["spec"]["containers"]
    seen: list[dict[str, Any]] = []
    with kubeflow_server() as kubeflow:
        for command, number in ((create, 1), (create, 1), (delete, 0)):
            done = subprocess.run(
                [sys.executable, "-m", "eosin", *at_host(command["command"], kubeflow.host)],
                env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert len(kubeflow.schedules) == number
            seen += kubeflow.schedules
    made = seen[0]
    parameters = made["runtime_config"]["parameters"]
    assert (
        seen == [made, made]
        and made["display_name"] == "eosin"
        and made["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 0"
    )
    assert parameters == {
        "run": "s3://b/runs/scheduled-{date}", "registry": "s3://b/registry", "name": "he",
        "recipe": "vits16-dinov2", "settings": ["seed=1"], "min_new_slides": 50, "s3_secret": "keys",
        "s3_ca_config_map": "ca", "image_pull_secret": "registry",
        **{f"{name}_image": image for name, image in IMAGES.items()},
    }  # fmt: skip
    executors = made["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    for task, resource in (("decode", "nvidia.com/gpu"), ("evaluate", "nvidia.com/mig-1g.10gb")):
        accelerator = executors[f"exec-{task}"]["container"]["resources"]["accelerator"]
        assert accelerator["resourceType"] == resource


def test_upgrade_and_rollback_rename_nothing(tmp_path: Path) -> None:
    """What a schedule or a user holds on to has the same name before and after any change of values."""
    changed = json.loads(json.dumps(FULL))
    changed["images"] = {name: image.replace("0" * 64, "1" * 64) for name, image in IMAGES.items()}
    changed["schedule"] |= {"cron": "1 1 * * *", "paused": True}
    changed["cluster"]["shm_size"] = "8Gi"
    kept = [
        {(item["kind"], item["metadata"]["name"]) for item in render(values, tmp_path)}
        for values in (FULL, changed)
    ]
    assert kept[0] == kept[1]
    # Nothing of the chart holds data: no claim that an uninstall or a rollback could take along.
    assert not {"PersistentVolumeClaim", "PersistentVolume"} & {kind for kind, _ in kept[0]}


@pytest.fixture
def next_chart(tmp_path: Path) -> Path:
    """The chart as a later `make publish` would push it: another version, other images."""
    chart = tmp_path / "next"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    about |= {"version": "9.9.9", "appVersion": "9.9.9"}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about))
    values = (chart / "values.yaml").read_text()
    for image in IMAGES:
        values = values.replace(f'  {image}: ""\n', f"  {image}: reg/{image}@sha256:{'1' * 64}\n")
    (chart / "values.yaml").write_text(values)
    return chart


def test_a_newer_chart_changes_nothing_that_an_api_server_refuses_to_change(
    tmp_path: Path, next_chart: Path
) -> None:
    own = {key: value for key, value in FULL.items() if key != "images"}
    old = render({**own, "images": IMAGES}, tmp_path)
    new = render(own, tmp_path, chart=next_chart)
    versions = [{item["metadata"]["labels"]["helm.sh/chart"] for item in objects} for objects in (old, new)]
    assert versions[0] != versions[1] == {"eosin-9.9.9"}
    assert [_fixed(item) for item in old] == [_fixed(item) for item in new]
    hooks = {item["metadata"].get("annotations", {}).get("helm.sh/hook", "") for item in [*old, *new]}
    assert hooks <= {"", "test", "pre-delete"}, "an upgrade or a rollback would run it"


def _fixed(item: dict[str, Any]) -> tuple[Any, ...]:
    """Identity and the fields that cannot be changed in place."""
    fixed = [item.get(field) for field in ("roleRef", "value", "preemptionPolicy", "globalDefault", "type")]
    return (item["kind"], item["metadata"]["name"], item["metadata"].get("namespace"), *fixed)


def test_upgrade_and_rollback_between_two_charts_keep_one_schedule_and_its_runs(
    tmp_path: Path, next_chart: Path
) -> None:
    own = {key: value for key, value in FULL.items() if key != "images"}
    charts = [({**own, "images": IMAGES}, CHART), (own, next_chart), ({**own, "images": IMAGES}, CHART)]
    seen: list[dict[str, Any]] = []
    with kubeflow_server() as kubeflow:
        going = {"run_id": "r", "display_name": "scheduled-2026-11-22", "state": "RUNNING"}
        kubeflow.runs.append(going)
        for values, chart in charts:
            job = only(render(values, tmp_path, chart=chart), "CronJob")["spec"]["jobTemplate"]["spec"]
            (container,) = job["template"]["spec"]["containers"]
            arguments = at_host(container["command"], kubeflow.host)
            assert invoke(arguments) == 0
            seen += kubeflow.schedules
            assert kubeflow.runs == [going]
    images = [schedule["runtime_config"]["parameters"]["train_image"][-1] for schedule in seen]
    assert images == ["0", "1", "0"], "one schedule at each time, with the images of the chart installed"
    assert seen[0]["description"] == seen[2]["description"] != seen[1]["description"]


def test_alerts_and_dashboard_speak_of_metrics_that_training_exports(tmp_path: Path) -> None:
    source = (ROOT / "src/eosin/training/progress.py").read_text()
    exported = set(re.findall(r'"(\w+)":', source))
    objects = render(FULL, tmp_path)
    rules = json.dumps(only(objects, "PrometheusRule"))
    board = only(objects, "ConfigMap", "dashboard")["data"]["eosin.json"]
    used = set(re.findall(r"eosin_train_(\w+)", rules + board))
    exported |= set(re.findall(r'fields\["(\w+)"\]', source))
    assert {"step", "loss", "teacher_entropy", "checkpoint_age_s", "data_wait_share"} <= used
    assert used <= exported
    assert json.loads(board)["panels"]


def test_every_query_is_promql(tmp_path: Path) -> None:
    promql_parser = pytest.importorskip("promql_parser", reason="pip install promql-parser")
    objects = render(FULL, tmp_path)
    (group,) = only(objects, "PrometheusRule")["spec"]["groups"]
    board = json.loads(only(objects, "ConfigMap", "dashboard")["data"]["eosin.json"])
    queries = [rule["expr"] for rule in group["rules"]]
    # Grafana puts the chosen names in the place of its variables.
    queries += [
        re.sub(r"\$\w+", "x", target["expr"]) for panel in board["panels"] for target in panel["targets"]
    ]
    for query in queries:
        promql_parser.parse(query)
    assert len(queries) > len(group["rules"]) >= 6
    for rule in group["rules"]:
        assert rule["annotations"].keys() == {"summary", "description"} and rule["labels"]["severity"]


def test_notes_give_the_two_next_commands(tmp_path: Path) -> None:
    notes = run("helm", "install", "eosin", str(CHART), "--dry-run=client", "--namespace", "pathology")
    assert "helm test eosin --namespace pathology" in notes.stdout
    assert "eosin submit pretrain" in notes.stdout
    assert "make publish" in notes.stdout


def test_schema_and_readme_are_generated_from_the_values() -> None:
    done = subprocess.run(
        [sys.executable, "helm/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_value_is_documented() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare = [
        line
        for before, line in pairwise(lines)
        if re.match(r"^ *[A-Za-z0-9]+: \S", line) and "#" not in before
    ]
    assert [line for line in bare if not re.match(r"^ {4,}\S+: ", line)] == []
