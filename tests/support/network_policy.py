"""NetworkPolicies as nftables rules, and pods as network namespaces that keep to them.

What a network plugin does, in the pod's own namespace: a pod that no policy selects is open; one that is
selected refuses, in the policy's directions, all that no rule allows; answers to what was let through pass.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.hosts import Host, Hosts, namespaces_work

LISTENS_AT = (53, 80, 443, 988, 5432, 6443, 9464, 12345, 29400)
_ANSWER = f"""
import socket, threading
def serve(port):
    s = socket.create_server(("0.0.0.0", port), backlog=16)
    while True: s.accept()[0].close()
for port in {LISTENS_AT}: threading.Thread(target=serve, args=(port,), daemon=True).start()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("0.0.0.0", 53)); print("up", flush=True)
while True:
    data, peer = u.recvfrom(99); u.sendto(data, peer)
"""
_ASK = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def ask(target):
    address, port, protocol = target
    try:
        if protocol == "TCP":
            socket.create_connection((address, port), timeout=2).close()
        else:
            u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(2)
            u.sendto(b"?", (address, port)); u.recvfrom(99)
        return True
    except OSError:
        return False
with ThreadPoolExecutor(64) as pool: print(json.dumps(list(pool.map(ask, json.loads(sys.argv[1])))))
"""


@dataclass(frozen=True)
class Peer:
    """A pod, or with no namespace a machine elsewhere, at an address of its own."""

    name: str
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    """Named ports of its containers."""
    address: str = ""
    """One that it has beside that of its interface, such as 169.254.169.254."""


class Network:
    """Peers that reach each other, less what the policies forbid. Gone when the block ends."""

    def __init__(self, peers: Sequence[Peer], namespaces: dict[str, dict[str, str]]) -> None:
        """`namespaces`: labels of each."""
        if not namespaces_work() or shutil.which("nft") is None:
            pytest.skip(
                "pods as network namespaces need root, iproute2 and nftables: apt-get install nftables"
            )
        self._peers = {peer.name: peer for peer in peers}
        self._namespaces = namespaces
        self._hosts = Hosts()
        self._at: dict[str, Host] = {}
        self._servers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Network":
        self._hosts.__enter__()
        for name, peer in self._peers.items():
            self._at[name] = host = self._hosts.add()
            if peer.address:
                _run(host, "ip", "address", "add", f"{peer.address}/32", "dev", "lo")
            _run(host, "ip", "route", "add", "default", "dev", "eth0")
            answer = [*host.prefix, sys.executable, "-S", "-c", _ANSWER]
            self._servers.append(subprocess.Popen(answer, stdout=subprocess.PIPE, text=True))
        for server in self._servers:
            assert server.stdout is not None and server.stdout.readline() == "up\n"
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.kill()
            server.communicate()
        self._hosts.__exit__(None, None, None)

    def address(self, name: str) -> str:
        return self._peers[name].address or self._at[name].address

    def enforce(self, policies: Sequence[dict[str, Any]]) -> None:
        """Load each pod's rules, in the place of those before."""
        for name, peer in self._peers.items():
            _run(self._at[name], "nft", "-f", "-", text="flush ruleset\n" + self._ruleset(peer, policies))

    def reached(self, source: str, targets: Sequence[tuple[str, int, str]]) -> list[bool]:
        """For each (peer, port, protocol), whether `source` gets an answer there."""
        asked = json.dumps([[self.address(name), port, protocol] for name, port, protocol in targets])
        command = [*self._at[source].prefix, sys.executable, "-S", "-c", _ASK, asked]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return list(json.loads(done.stdout))

    def _ruleset(self, pod: Peer, policies: Sequence[dict[str, Any]]) -> str:
        chains = [self._chain(pod, policies, way) for way in ("Ingress", "Egress")]
        return "table inet pods {\n" + "\n".join(chains) + "\n}\n"

    def _chain(self, pod: Peer, policies: Sequence[dict[str, Any]], way: str) -> str:
        mine = [each for each in policies if _selects(each, pod) and way in each["spec"]["policyTypes"]]
        rules = [line for policy in mine for rule in policy["spec"].get(way.lower()) or []
                 for line in self._allowed(policy["metadata"]["namespace"], rule, pod, way)]  # fmt: skip
        hook, loopback = ("input", "iif lo") if way == "Ingress" else ("output", "oif lo")
        head = f"type filter hook {hook} priority 0; policy {'drop' if mine else 'accept'};"
        lines = [head, f"{loopback} accept", "ct state established,related accept", *rules]
        return f"chain {hook} {{\n" + "\n".join(f"  {line}" for line in lines) + "\n}"

    def _allowed(self, namespace: str, rule: dict[str, Any], pod: Peer, way: str) -> Iterator[str]:
        """Lines of one rule: every peer of it with every port of it."""
        _only(rule, {"from", "to", "ports"})
        side = "saddr" if way == "Ingress" else "daddr"
        for match, peer in self._matches(namespace, rule.get("from") or rule.get("to"), side):
            destination = pod if way == "Ingress" else peer
            ports = [_port(port, destination) for port in rule["ports"]] if rule.get("ports") else [""]
            yield from (f"{match} {port} accept".strip() for port in ports if port is not None)

    def _matches(
        self, namespace: str, peers: list[dict[str, Any]] | None, side: str
    ) -> Iterator[tuple[str, Peer | None]]:
        if peers is None:  # everywhere
            yield "", None
        for peer in peers or []:
            _only(peer, {"podSelector", "namespaceSelector", "ipBlock"})
            if block := peer.get("ipBlock"):
                _only(block, {"cidr", "except"})
                family = "ip6" if ":" in block["cidr"] else "ip"
                left_out = "".join(f" {family} {side} != {each}" for each in block.get("except") or [])
                yield f"{family} {side} {block['cidr']}{left_out}", None
                continue
            for name, other in self._peers.items():
                if other.namespace and self._is_meant(namespace, peer, other):
                    yield f"ip {side} {self._at[name].address}", other

    def _is_meant(self, namespace: str, peer: dict[str, Any], other: Peer) -> bool:
        there = (
            _fits(peer["namespaceSelector"], self._namespaces[other.namespace])
            if "namespaceSelector" in peer
            else other.namespace == namespace
        )
        return there and _fits(peer.get("podSelector") or {}, other.labels)


def _selects(policy: dict[str, Any], pod: Peer) -> bool:
    _only(policy["spec"], {"podSelector", "policyTypes", "ingress", "egress"})
    inside = pod.namespace == policy["metadata"]["namespace"]
    return inside and _fits(policy["spec"]["podSelector"], pod.labels)


def _fits(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    _only(selector, {"matchLabels"})
    return (selector.get("matchLabels") or {}).items() <= labels.items()


def _port(port: dict[str, Any], destination: Peer | None) -> str | None:
    """None: a name that the destination's containers do not have."""
    _only(port, {"port", "protocol", "endPort"})
    protocol, number = port.get("protocol", "TCP").lower(), port.get("port")
    if isinstance(number, str):
        assert destination is not None, f"port {number} has no pod to be looked up at"
        number = destination.ports.get(number)
        if number is None:
            return None
    last = f"-{port['endPort']}" if "endPort" in port else ""
    return f"meta l4proto {protocol}" if number is None else f"{protocol} dport {number}{last}"


def _only(given: dict[str, Any], known: set[str]) -> None:
    """What this translator does not know must not be passed over."""
    assert given.keys() <= known, given.keys() - known


def _run(host: Host, *command: str, text: str = "") -> None:
    done = subprocess.run([*host.prefix, *command], input=text, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{done.stderr}\n{text}"
