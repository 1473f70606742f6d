"""The chart's NetworkPolicies, enforced: between network namespaces, by nftables, packet by packet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eosin.cluster import names
from eosin.cluster.jobset import render_jobset
from eosin.config import load_config
from tests.contract.test_chart import render
from tests.support.network_policy import Network, Peer

METADATA = "169.254.169.254"
STORE, ELSEWHERE = "198.51.100.7", "203.0.113.9"
HOME, MONITORING = "pathology", "monitoring"
NAMESPACES = {name: {"kubernetes.io/metadata.name": name} for name in (HOME, MONITORING, "elsewhere")}


def training_pods() -> list[Peer]:
    """One pod of each replicated job, as it is rendered and as JobSet labels it."""
    config = load_config("cluster: {pools: [{name: anchor}, {name: spot, spot: true}]}")
    found = []
    for job in render_jobset(config, "s3://b/runs/x", image="reg/eosin:1")["spec"]["replicatedJobs"]:
        template = job["template"]["spec"]["template"]
        ports = {port["name"]: port["containerPort"]
                 for each in template["spec"]["containers"] for port in each.get("ports", [])}  # fmt: skip
        labels = template["metadata"]["labels"] | {names.REPLICATED_JOB_LABEL: job["name"]}
        found.append(Peer(job["name"], HOME, labels, ports))
    return found


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    train = training_pods()
    peers = [
        *train,
        Peer("notebook", HOME, {"app": "notebook"}),
        Peer("scraper", MONITORING, {"app": "prometheus"}),
        Peer("stranger", "elsewhere", train[1].labels, train[1].ports),
        Peer("dns", "elsewhere", {"k8s-app": "dns"}),
        Peer("apiserver"),
        Peer("store", address=STORE),
        Peer("internet", address=ELSEWHERE),
        Peer("metadata", address=METADATA),
    ]
    with Network(peers, NAMESPACES) as made:
        yield made


def policies(folder: Path, **values: Any) -> list[dict[str, Any]]:
    store = {"storeCidrs": [f"{STORE}/32"], **values}
    return [item for item in render({"networkPolicy": store}, folder) if item["kind"] == "NetworkPolicy"]


TCP, UDP = "TCP", "UDP"
# Who asks whom, and whether an answer may come.
EXPECTED: list[tuple[str, str, int, str, bool]] = [
    *[("anchor", peer, port, TCP, True) for peer in ("spot", "rdzv") for port in (29400, 12345, 9464)],
    *[("spot", peer, 12345, TCP, True) for peer in ("anchor", "rdzv")],
    *[("rdzv", peer, 12345, TCP, True) for peer in ("anchor", "spot")],
    *[(pod, "dns", 53, protocol, True) for pod in ("anchor", "rdzv") for protocol in (TCP, UDP)],
    *[(pod, "store", 443, TCP, True) for pod in ("anchor", "spot", "rdzv")],
    *[("rdzv", "apiserver", port, TCP, True) for port in (443, 6443)],
    *[(pod, "apiserver", port, TCP, False) for pod in ("anchor", "spot") for port in (443, 6443)],
    *[(pod, "metadata", port, TCP, False) for pod in ("anchor", "rdzv") for port in (80, 988)],
    *[("anchor", "store", port, TCP, False) for port in (80, 5432)],
    *[("anchor", "internet", port, TCP, False) for port in (80, 443, 5432)],
    *[("rdzv", "internet", port, TCP, False) for port in (80, 5432)],
    *[("anchor", peer, 12345, TCP, False) for peer in ("notebook", "stranger", "scraper", "dns")],
    *[(peer, "anchor", 12345, TCP, False) for peer in ("notebook", "stranger", "scraper", "internet")],
    *[(peer, "anchor", 9464, TCP, False) for peer in ("notebook", "stranger", "internet")],
    *[("scraper", pod, 9464, TCP, True) for pod in ("anchor", "spot")],
    ("scraper", "rdzv", 29400, TCP, False),
    ("stranger", "rdzv", 29400, TCP, False),
    ("notebook", "internet", 80, TCP, True),
    ("scraper", "notebook", 12345, TCP, True),
]


def answers(network: Network) -> dict[tuple[str, str, int, str], bool]:
    found = {}
    for source in dict.fromkeys(each[0] for each in EXPECTED):
        targets = [each[1:4] for each in EXPECTED if each[0] == source]
        for target, reached in zip(targets, network.reached(source, targets), strict=True):
            found[source, *target] = reached
    return found


def test_training_reaches_its_store_dns_and_itself_and_nothing_else(network: Network, tmp_path: Path) -> None:
    network.enforce([])
    assert all(answers(network).values()), "without a policy all is open"
    network.enforce(policies(tmp_path))
    found, wanted = answers(network), {tuple(each[:4]): each[4] for each in EXPECTED}
    assert {key: value for key, value in found.items() if wanted[key] is not value} == {}


def test_what_values_open_is_open_and_no_more(network: Network, tmp_path: Path) -> None:
    network.enforce(policies(tmp_path, metadataCidrs=[f"{METADATA}/32"], storePorts=[5432]))
    asked = [("metadata", 80, TCP), ("metadata", 6443, TCP), ("store", 5432, TCP), ("store", 443, TCP)]
    assert network.reached("anchor", asked) == [True, False, True, False]
    network.enforce(policies(tmp_path, storeCidrs=["0.0.0.0/0"]))
    asked = [("internet", 443, TCP), ("internet", 80, TCP), ("metadata", 80, TCP), ("apiserver", 6443, TCP)]
    assert network.reached("anchor", asked) == [True, False, False, False]
