"""The rendered JobSet: golden files, the upstream schemas, and the properties that keep a run alive."""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from eosin.cluster import names
from eosin.cluster.jobset import render_disruption_budget, render_jobset
from eosin.cluster.spot_jobs import render_spot_jobs
from eosin.config import RunConfig, load_config
from eosin.errors import UserError
from tests.support.kubernetes import built_in_errors, check_golden, crd_errors

GOLDEN = Path(__file__).parent / "golden"
IMAGE = "registry.example/eosin-train@sha256:" + "0" * 64
RUN = "s3://bucket/runs/vits16"
OWNER = names.OwnerReference("argoproj.io/v1alpha1", "Workflow", "pretrain-x7k2p", "6f1c-uid")

ONE_NODE = ""
SPOT = """
train: {num_microbatches: 256, elastic: {shutdown_timeout_s: 20, last_call_timeout_s: 0.4}}
patches: {reader: stage, stage_dir: /mnt/nvme}
cluster:
  namespace: pathology
  image_pull_secrets: [registry]
  s3: {secret: bucket-keys, endpoint_url: "https://store.example", ca_config_map: store-ca}
  scratch: {size: 1Ti, storage_class: local-nvme}
  queue: pathology
  queue_priority_class: training
  priority_class: eosin-anchor
  spot_priority_class: eosin-spot
  env: {NCCL_DEBUG: WARN}
  rendezvous: {node_selector: {pool: system}}
  pools:
  - {name: anchor, min_nodes: 2, max_nodes: 3, gpus_per_node: 8, node_selector: {pool: h100}}
  - name: mig
    min_nodes: 1
    max_nodes: 2
    gpus_per_node: 4
    gpu_resource: nvidia.com/mig-3g.40gb
  - name: spot
    spot: true
    max_nodes: 6
    gpus_per_node: 8
    node_selector: {pool: h100-spot}
    tolerations: [{key: cloud/spot, operator: Equal, value: "true", effect: NoSchedule}]
"""
CPU = """
train: {elastic: {workers_per_node: 2}}
cluster: {topology_key: "", ttl_s: null, s3: {region: eu-central-1}, pools: [{gpus_per_node: 0}]}
"""
ELASTIC_JOB = SPOT.replace(
    "  queue: pathology\n", "  queue: pathology\n  spot_as: elastic-job\n  spot_queue_priority_class: trial\n"
)
TOPOLOGY = """
train: {num_microbatches: 64}
cluster:
  queue: pathology
  pools:
  - {name: anchor, min_nodes: 2, max_nodes: 2, required_topology: cloud.example/rack}
  - {name: near, max_nodes: 4, preferred_topology: cloud.example/block}
  - {name: own, max_nodes: 3, exclusive_topology: cloud.example/rack}
"""
CONFIGS = {"topology": TOPOLOGY, "one-node": ONE_NODE, "spot": SPOT, "cpu": CPU, "elastic-job": ELASTIC_JOB}


def render(text: str, **more: Any) -> dict[str, Any]:
    return render_jobset(load_config(text), RUN, image=IMAGE, **more)


def jobs(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {job["name"]: job["template"]["spec"] for job in manifest["spec"]["replicatedJobs"]}


def container(job: dict[str, Any]) -> dict[str, Any]:
    """The store or the agent; the watcher is a second one beside the store."""
    return job["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("case", CONFIGS)
def test_golden(case: str) -> None:
    config = load_config(CONFIGS[case])
    jobset = render_jobset(config, RUN, image=IMAGE, owner=OWNER)
    objects = [
        jobset,
        render_disruption_budget(config, RUN, owner=OWNER),
        *render_spot_jobs(config, RUN, image=IMAGE, jobset=jobset),
    ]
    # The digest covers every section; what the others hold is none of this file's business.
    text = yaml.safe_dump_all(objects, sort_keys=False, width=120).replace(config.digest(), "CONFIG-DIGEST")
    check_golden(GOLDEN / f"{case}.yaml", text, update=os.environ.get("EOSIN_UPDATE_GOLDEN") == "1")


@pytest.mark.parametrize("case", CONFIGS)
def test_valid_for_the_jobset_crd(case: str) -> None:
    assert crd_errors(render(CONFIGS[case], owner=OWNER), "jobset.x-k8s.io_jobsets.yaml") == []


def test_the_schema_check_would_notice_a_misspelt_field() -> None:
    manifest = render(ONE_NODE)
    manifest["spec"]["successPolicy"]["operater"] = "All"
    assert any("operater" in error for error in crd_errors(manifest, "jobset.x-k8s.io_jobsets.yaml"))


@pytest.mark.parametrize("case", CONFIGS)
def test_each_job_and_the_budget_are_valid_built_in_objects(case: str) -> None:
    for name, spec in jobs(render(CONFIGS[case])).items():
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}
        assert built_in_errors(job) == []
    assert built_in_errors(render_disruption_budget(load_config(CONFIGS[case]), RUN)) == []


@pytest.mark.parametrize("case", CONFIGS)
def test_accepted_by_the_published_models(case: str) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api")
    manifest = render(CONFIGS[case])
    parsed = models.JobsetV1alpha2JobSet.from_dict(manifest)
    assert [job.name for job in parsed.spec.replicated_jobs] == list(jobs(manifest))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("pools: [{required_topology: rack}]", "pool anchor asks Kueue for a topology, and no queue"),
        ("pools: [{preferred_topology: rack}]", "pool anchor asks Kueue for a topology, and no queue"),
        ("queue: q, pools: [{exclusive_topology: rack, max_nodes: 2}]", "they are two Jobs"),
        *(
            (
                f"queue: q, spot_as: elastic-job, "
                f"pools: [{{}}, {{name: b, spot: true, {kind}_topology: rack}}]",
                "pool b asks for a topology, and its pods are a Job of their own",
            )
            for kind in ("required", "preferred", "exclusive")
        ),
        ("queue: q, pools: [{required_topology: a, exclusive_topology: b}]", "give one"),
        ("queue: q, pools: [{required_topology: a rack}]", "the key of a Kubernetes label"),
    ],
)
def test_a_topology_that_nobody_would_heed_is_refused(section: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        render(f"cluster: {{{section}}}")


def test_world_is_the_sum_of_the_pools_and_every_node_is_placed() -> None:
    rendered = jobs(render(SPOT))
    sizes = {name: spec["parallelism"] for name, spec in rendered.items()}
    assert sizes == {"rdzv": 1, "anchor": 2, "anchor-more": 1, "mig": 2, "spot": 6}
    agents = [container(spec)["command"] for name, spec in rendered.items() if name != "rdzv"]
    assert {flag for command in agents for flag in command if flag.startswith("--nnodes")} == {
        "--nnodes=3:11"
    }


def test_torchrun_takes_the_flags_as_rendered() -> None:
    run = pytest.importorskip("torch.distributed.run")
    for name, spec in jobs(render(SPOT)).items():
        command = container(spec)["command"]
        if name != "rdzv":
            parsed = run.get_args_parser().parse_args(command[command.index("--nnodes=3:11") :])
            assert parsed.training_script == "eosin.training.worker"
            assert parsed.training_script_args == [RUN]


def test_rendezvous_settings_are_whole_numbers() -> None:
    """torch reads them with int(); 0.4 s must become 1 and not an error in every pod."""
    command = container(jobs(render(SPOT))["anchor"])["command"]
    (flag,) = [part for part in command if part.startswith("--rdzv-conf=")]
    pairs = dict(pair.split("=") for pair in flag.removeprefix("--rdzv-conf=").split(","))
    assert {key: int(value) for key, value in pairs.items()}["last_call_timeout"] == 1


def test_agents_name_themselves_and_the_store_by_dns_that_the_jobset_makes() -> None:
    manifest = render(SPOT)
    name = manifest["metadata"]["name"]
    agent = container(jobs(manifest)["spot"])
    assert f"--rdzv-endpoint={name}-rdzv-0-0.{name}:29400" in agent["command"]
    assert f"--local-addr=$(EOSIN_POD_HOST).{name}" in agent["command"]
    order = [variable["name"] for variable in agent["env"]]
    assert order.index("EOSIN_JOB_NAME") < order.index("EOSIN_POD_HOST")
    assert {v["name"]: v.get("value") for v in agent["env"]}[
        "EOSIN_POD_HOST"
    ] == "$(EOSIN_JOB_NAME)-$(EOSIN_JOB_INDEX)"


@pytest.mark.parametrize("case", CONFIGS)
def test_configuration_error_stops_at_once_and_eviction_is_forgiven(case: str) -> None:
    manifest = render(CONFIGS[case])
    for name, spec in jobs(manifest).items():
        if name == "rdzv":
            assert "podFailurePolicy" not in spec
            continue
        first, second = spec["podFailurePolicy"]["rules"]
        assert (first["action"], first["onExitCodes"]["values"]) == ("FailJob", [42, 43])
        assert first["onExitCodes"]["containerName"] == container(spec)["name"]
        assert (second["action"], second["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_only_the_anchor_decides_success_and_only_it_can_run_out_of_retries() -> None:
    manifest = render(SPOT)
    assert manifest["spec"]["successPolicy"] == {"operator": "All", "targetReplicatedJobs": ["anchor"]}
    limits = {name: spec["backoffLimit"] for name, spec in jobs(manifest).items()}
    assert limits["anchor"] == 10 * 2  # a node
    assert min(limits[name] for name in ("anchor-more", "mig", "spot")) == 2**31 - 1


@pytest.mark.parametrize("case", CONFIGS)
def test_restricted_pod_security(case: str) -> None:
    for spec in jobs(render(CONFIGS[case])).values():
        pod = spec["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in pod["containers"]:
            assert each["securityContext"]["allowPrivilegeEscalation"] is False
            assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPath" in volume for volume in pod["volumes"])
        mounted = {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_watcher_alone_speaks_to_the_api_server_with_an_account_of_its_own() -> None:
    pods = {name: spec["template"]["spec"] for name, spec in jobs(render(SPOT)).items()}
    watched = pods.pop("rdzv")
    assert [each["name"] for each in watched["containers"]] == ["rendezvous", "watcher"]
    assert (
        watched["serviceAccountName"] == "eosin-watcher" and watched["automountServiceAccountToken"] is True
    )
    rendezvous, watcher = watched["containers"]
    # It notes in the run what it ends; the store beside it has no business there.
    assert watcher["envFrom"] == [{"secretRef": {"name": "bucket-keys"}}] and "envFrom" not in rendezvous
    assert RUN in watcher["command"]
    for pod in pods.values():
        assert len(pod["containers"]) == 1 and pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] != "eosin-watcher"


def test_secrets_are_referred_to_and_never_written() -> None:
    agent = container(jobs(render(SPOT))["anchor"])
    assert agent["envFrom"] == [{"secretRef": {"name": "bucket-keys"}}]
    assert not any(
        "SECRET" in variable["name"] or "ACCESS_KEY" in variable["name"] for variable in agent["env"]
    )


def test_same_run_same_name_another_run_another() -> None:
    assert names.jobset_name(RUN) == names.jobset_name(RUN + "/")
    assert names.jobset_name(RUN) != names.jobset_name("s3://other/runs/vits16")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_run_uri_gives_a_name_that_fits_a_host_name(tail: str) -> None:
    name = names.jobset_name(f"s3://bucket/{tail}")
    host = f"{name}-{'p' * 12}-more-0-999"
    assert len(host) <= 63
    assert name.strip("abcdefghijklmnopqrstuvwxyz0123456789-") == ""
    assert name[0].isalpha()
    assert not name.endswith("-")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cluster: {grace_period_s: 20}", "cluster.grace_period_s"),
        ("train: {num_microbatches: 4}\ncluster: {pools: [{gpus_per_node: 8}]}", "microbatches"),
    ],
)
def test_refused_before_a_gpu_is_taken(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        render(text)


def test_a_local_run_uri_or_no_image_is_refused() -> None:
    with pytest.raises(UserError, match="cannot reach"):
        render_jobset(RunConfig(), "file:///tmp/run", image=IMAGE)
    with pytest.raises(UserError, match="no image"):
        render_jobset(RunConfig(), RUN, image="")


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ("[]", "at least one"),
        ("[{name: a}, {name: a}]", "share a name"),
        ("[{name: rdzv}]", "rendezvous"),
        ("[{min_nodes: 0}]", "min_nodes of at least 1"),
        ("[{name: spot}, {name: od}]", "sorts before"),
        ("[{name: anchor}, {name: anchor-2}]", "begins with"),
        ("[{name: a, spot: true}, {name: b}]", "on-demand"),
        ("[{min_nodes: 3, max_nodes: 2}]", "exceeds max_nodes"),
        ("[{name: Anchor}]", "pattern"),
        ("[{memory: 64GB}]", "Kubernetes quantity"),
    ],
)
def test_impossible_pools_are_named(pools: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(f"cluster: {{pools: {pools}}}")


def test_arguments_survive_a_shell_unquoted_uri() -> None:
    """Commands are lists: a run URI with spaces is one argument, and no shell sees it."""
    manifest = render_jobset(RunConfig(), "s3://bucket/runs/my run; rm", image=IMAGE)
    command = container(jobs(manifest)["anchor"])["command"]
    assert command[-1] == "s3://bucket/runs/my run; rm"
    assert not any(part in {"sh", "bash", "-c"} for part in command)
    assert shlex.split(shlex.join(command)) == command


def spot_job(**metadata: Any) -> dict[str, Any]:
    jobset = render(ELASTIC_JOB)
    jobset["metadata"] |= metadata
    (job,) = render_spot_jobs(load_config(ELASTIC_JOB), RUN, image=IMAGE, jobset=jobset)
    return job


def test_a_spot_pool_may_be_a_job_that_kueue_admits_apart() -> None:
    jobset, job = render(ELASTIC_JOB), spot_job(uid="1-2")
    assert built_in_errors(job) == []
    assert "spot" not in jobs(jobset) and job["metadata"]["name"] == f"{jobset['metadata']['name']}-spot"
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == 6
    assert job["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"
    labels = (jobset["metadata"]["labels"], job["metadata"]["labels"])
    assert [each["kueue.x-k8s.io/queue-name"] for each in labels] == ["pathology", "pathology"]
    assert [each["kueue.x-k8s.io/priority-class"] for each in labels] == ["training", "trial"]
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("JobSet", "1-2", False)


def test_its_agents_join_the_world_of_the_jobset() -> None:
    jobset, job = render(ELASTIC_JOB), spot_job()
    name = jobset["metadata"]["name"]
    anchor, spot = jobs(jobset)["anchor"], job["spec"]
    shared = [
        {flag for flag in container(each)["command"] if flag.startswith(("--rdzv", "--nnodes"))}
        for each in (anchor, spot)
    ]
    assert shared[0] == shared[1] and f"--rdzv-id={name}" in shared[0]
    assert "--nnodes=3:11" in shared[0], "the world counts the pool"
    template = spot["template"]
    # JobSet's Service selects by this label, and a host name under it is one of the pod's subdomain.
    assert template["metadata"]["labels"][names.JOBSET_NAME_LABEL] == name == template["spec"]["subdomain"]
    assert f"--local-addr=$(EOSIN_POD_HOST).{name}" in container(spot)["command"]
    named = {
        each["valueFrom"]["fieldRef"]["fieldPath"] for each in container(spot)["env"] if "valueFrom" in each
    }
    for label in (names.RESTART_ATTEMPT_LABEL, names.JOBSET_NAME_LABEL):
        assert label in template["metadata"]["labels"]
    assert f"metadata.labels['{names.RESTART_ATTEMPT_LABEL}']" in named


def test_a_jobset_made_with_its_spot_pool_inside_gets_no_job_beside_it() -> None:
    before = render(SPOT)
    assert render_spot_jobs(load_config(ELASTIC_JOB), RUN, image=IMAGE, jobset=before) == []
    assert render_spot_jobs(load_config(SPOT), RUN, image=IMAGE, jobset=before) == []


def test_a_job_of_its_own_is_for_kueue() -> None:
    with pytest.raises(UserError, match=r"no queue is named"):
        render(ELASTIC_JOB.replace("  queue: pathology\n", ""))
