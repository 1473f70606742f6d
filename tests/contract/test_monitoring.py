"""The chart's monitoring in Debian's Prometheus: each alert fired on purpose, each panel of a real run."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.test_chart import CHART, only, render
from tests.support.training_run import begin, tiny_config

HOUR = 60
WHERE = {"namespace": "pathology", "jobset": "run"}
# Series of a training that goes well; one value a minute.
HEALTHY = {
    "step": "0+10x600", "num_steps": "100000x600", "checkpoint_age_s": "300x600",
    "data_wait_share": "0.1x600", "teacher_entropy": "4x600", "world_size": "8x600", "eta_s": "90000x600",
}  # fmt: skip
# Alert → (what is otherwise, when it fires, in minutes, and its summary).
ILL: dict[str, tuple[dict[str, str], int, str]] = {
    "EosinNoProgress": ({"step": "0+10x60 600x600"}, 90, "run has made no step for 20m"),
    "EosinCheckpointTooOld": ({"checkpoint_age_s": "0+60x600"}, 70, "run has saved nothing for 1h 10m 0s"),
    "EosinWaitsForData": ({"data_wait_share": "0.5x600"}, 20,
                         "run spends 50% of its time waiting for patches"),
    "EosinCollapse": (
        {"teacher_entropy": "4x30 0.01x600"}, 50, "run: the teacher puts nearly all patches on one prototype"
    ),
    "EosinStopped": (
        {name: f"{values.replace('600', '60')} stale" for name, values in HEALTHY.items()}
        | {"eta_s": "90000x60 stale"}, 90, "run has stopped with 1d 1h 0m 0s of work left"
    ),
    "EosinWorldShrunk": ({"world_size": "8x60 3x600"}, 3 * HOUR,
                         "run trains on less than half the workers it had"),
}  # fmt: skip


def binary(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus")
    return found


def monitoring(folder: Path, **rules: Any) -> list[dict[str, Any]]:
    values = {"podMonitor": {"enabled": True, "interval": "1s"}, "rules": {"enabled": True, **rules}}
    return render({"monitoring": values}, folder)


def rules_file(folder: Path, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spec = only(objects, "PrometheusRule")["spec"]
    (folder / "rules.yaml").write_text(yaml.safe_dump(spec))
    return [rule for group in spec["groups"] for rule in group["rules"]]


def promtool(folder: Path, *arguments: str) -> str:
    command = [binary("promtool"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def series(values: dict[str, str]) -> list[dict[str, str]]:
    labels = ",".join(f'{key}="{value}"' for key, value in WHERE.items())
    return [{"series": f"eosin_train_{name}{{{labels}}}", "values": text} for name, text in values.items()]


@pytest.mark.parametrize("alert", ["none", *ILL])
def test_each_alert_fires_for_its_own_trouble_and_no_other(alert: str, tmp_path: Path) -> None:
    rules = {rule["alert"]: rule for rule in rules_file(tmp_path, monitoring(tmp_path))}
    assert rules.keys() == ILL.keys()
    changed, minute, summary = ILL.get(alert, ({}, 5 * HOUR, ""))
    checks = []
    for name, rule in rules.items():
        annotations = {**rule["annotations"], "summary": summary}
        fired = [{"exp_labels": {**WHERE, **rule["labels"]}, "exp_annotations": annotations}]
        expected = fired if name == alert else []
        checks.append({"eval_time": f"{minute}m", "alertname": name, "exp_alerts": expected})
    case = {"interval": "1m", "input_series": series(HEALTHY | changed), "alert_rule_test": checks}
    test = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    promtool(tmp_path, "check", "rules", "rules.yaml")
    promtool(tmp_path, "test", "rules", "test.yaml")


def test_a_training_that_came_to_its_end_is_no_alert(tmp_path: Path) -> None:
    """Rank 0 of an earlier world died far from it; the last one was seen at 99 %."""
    rules_file(tmp_path, monitoring(tmp_path))
    last = "".join(f',{key}="{value}"' for key, value in WHERE.items())
    both = [
        {"series": f'eosin_train_eta_s{{pod="a"{last}}}', "values": "9000x30 stale"},
        {"series": f'eosin_train_eta_s{{pod="b"{last}}}', "values": "_x35 5000-100x45 20 stale"},
    ]
    checks = [{"eval_time": f"{2 * HOUR}m", "alertname": "EosinStopped", "exp_alerts": []}]
    case = {"interval": "1m", "input_series": both, "alert_rule_test": checks}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [case]}))
    promtool(tmp_path, "test", "rules", "test.yaml")


def test_each_panel_shows_a_real_training_and_its_death_fires_an_alert(tmp_path: Path) -> None:
    prometheus = binary("prometheus")
    exporter, port = free_port(), free_port()
    objects = monitoring(tmp_path, noProgress="3s")
    rules_file(tmp_path, objects)
    scraped = scrape_config(only(objects, "PodMonitor"), exporter)
    settings = {"global": {"evaluation_interval": "1s"}, "rule_files": ["rules.yaml"],
                "scrape_configs": [scraped]}  # fmt: skip
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    promtool(tmp_path, "check", "config", "prometheus.yaml")
    server = [prometheus, f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/tsdb",
              f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]  # fmt: skip
    url = f"http://127.0.0.1:{port}/api/v1"
    with training(tmp_path, exporter) as trains, running(server):
        eventually("it is scraped", lambda: ask(url, "query", query="eosin_train_checkpoint_age_s"))
        for query in dashboard_queries():
            assert ask(url, "query", query=query), query
        shown = ask(url, "query", query="eosin_train_step")
        assert {key: shown[0]["metric"][key] for key in ("namespace", "jobset", "pool")} == {
            "namespace": "pathology", "jobset": "run", "pool": "anchor"
        }  # fmt: skip
        trains.send_signal(signal.SIGKILL)
        fired = eventually("the alert fires", lambda: firing(ask(url, "alerts")))
    assert fired == {"EosinStopped"}


def dashboard_queries() -> list[str]:
    """Of all panels and variables, each variable at All as Grafana puts it in."""
    dashboard = json.loads((CHART / "dashboards" / "training.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    variables = [re.fullmatch(r"label_values\((.*), \w+\)", query) for query in asked]
    return [re.sub(r"\$(namespace|jobset)", ".*", query)
            for query in [*panels, *(found[1] for found in variables if found)]]  # fmt: skip


def scrape_config(monitor: dict[str, Any], port: int) -> dict[str, Any]:
    """What the operator makes of a PodMonitor, with the one pod that service discovery would find."""
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    labels = {"jobset_sigs_k8s_io_jobset_name": "run", "jobset_sigs_k8s_io_replicatedjob_name": "anchor"}
    pod = {f"__meta_kubernetes_pod_label_{key}": value for key, value in labels.items()}
    pod["__meta_kubernetes_namespace"] = monitor["metadata"]["namespace"]
    of_the_operator = {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"}
    own = [{"source_labels": each["sourceLabels"], "target_label": each["targetLabel"]}
           for each in endpoint["relabelings"]]  # fmt: skip
    target = {"targets": [f"127.0.0.1:{port}"], "labels": pod}
    return {"job_name": "train", "scrape_interval": endpoint["interval"], "static_configs": [target],
            "relabel_configs": [of_the_operator, *own]}  # fmt: skip


@contextmanager
def training(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, as a pod's agent starts it, with patches of numbers; far from its end."""
    run, config = str(folder / "run"), {"num_steps": 10**6, "export_every_steps": 10**6, "log_every_steps": 1}
    begin(run, tiny_config(**config))
    variables = {"EOSIN_METRICS_PORT": str(port), "EOSIN_LOG": "json"}
    with running([sys.executable, "-m", "tests.support.training_run", run], **variables) as process:
        yield process


@contextmanager
def running(command: list[str], **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, what: str, **parameters: str) -> list[dict[str, Any]]:
    """The result of Prometheus' API; nothing while it does not answer yet."""
    try:
        with urllib.request.urlopen(
            f"{url}/{what}?{urllib.parse.urlencode(parameters)}", timeout=10
        ) as answer:
            data = json.load(answer)["data"]
    except OSError:
        return []
    found: list[dict[str, Any]] = data["alerts" if what == "alerts" else "result"]
    return found


def firing(alerts: list[dict[str, Any]]) -> set[str]:
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def eventually(what: str, condition: Callable[[], Any], timeout_s: float = 120) -> Any:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {timeout_s:g} s")
