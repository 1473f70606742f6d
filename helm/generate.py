"""Write the chart's values.schema.json and README.md from values.yaml and the configuration's own schema.

python helm/generate.py [--check]
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from eosin.config.cluster import ClusterConfig, TaskPodConfig

CHART = Path(__file__).parent / "eosin"

_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"}
_IMAGE = {"type": "string", "pattern": "^($|\\S+(:[\\w][\\w.-]{0,127}|@sha256:[0-9a-f]{64})$)"}
_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|[smhdw]))+$"}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}

# What the type of a default does not tell.
_KNOWN: dict[str, dict[str, Any]] = {
    "images.index": _IMAGE,
    "images.train": _IMAGE,
    "images.evaluate": _IMAGE,
    "images.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "images.pullSecrets": {"type": "array", "items": _NAME},
    "s3.runs": {"type": "string", "pattern": "^($|s3://[^/]+/.+)"},
    "s3.endpointUrl": {"type": "string", "pattern": "^($|https?://)"},
    "serviceAccounts.train.name": _NAME,
    "serviceAccounts.steps.name": _NAME,
    "serviceAccounts.watcher.name": _NAME,
    "serviceAccounts.watcher.annotations": _STRINGS,
    "serviceAccounts.train.annotations": _STRINGS,
    "serviceAccounts.steps.annotations": _STRINGS,
    "launcher.serviceAccounts": {"type": "array", "items": _NAME, "uniqueItems": True},
    "queue.name": _NAME,
    "queue.clusterQueue": _NAME,
    "networkPolicy.monitoringNamespaceLabels": _STRINGS,
    "networkPolicy.storePorts": {
        "type": "array",
        "minItems": 1,
        "items": {"type": "integer", "minimum": 1, "maximum": 65535},
    },
    "networkPolicy.apiServerPorts": {
        "type": "array",
        "minItems": 1,
        "items": {"type": "integer", "minimum": 1, "maximum": 65535},
    },
    "networkPolicy.storeCidrs": {"type": "array", "minItems": 1, "items": {"type": "string"}},
    "networkPolicy.metadataCidrs": {"type": "array", "items": {"type": "string"}},
    "schedule.cron": {"type": "string", "pattern": "^\\S+( \\S+){4}$"},
    "schedule.checkedAt": {"type": "string", "pattern": "^\\S+( \\S+){4}$"},
    "schedule.run": {"type": "string", "pattern": "^($|s3://.*\\{date\\})"},
    "schedule.parameters": {"type": "object"},
    "kubeflow.endpoint": {"type": "string", "pattern": "^https?://"},
    "monitoring.podMonitor.labels": _STRINGS,
    "monitoring.podMonitor.interval": _DURATION,
    "monitoring.rules.labels": _STRINGS,
    "monitoring.rules.noProgress": _DURATION,
    "monitoring.rules.checkpointAgeSeconds": {"type": "integer", "minimum": 1},
    "monitoring.rules.dataWaitShare": _SHARE,
    "monitoring.rules.teacherEntropy": {"type": "number", "minimum": 0},
    "monitoring.dashboard.labels": _STRINGS,
    "commonLabels": _STRINGS,
}


def values_schema() -> dict[str, Any]:
    """A JSON Schema of the values in which a misspelt key fails; `cluster` is the configuration's own."""
    cluster = _plain(ClusterConfig.model_json_schema())
    definitions = cluster.pop("$defs", {})
    schema = _schema_of(yaml.safe_load((CHART / "values.yaml").read_text()), "", cluster)
    # Helm hands a chart's values down with `global` added.
    schema["properties"]["global"] = {"type": "object"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": definitions, **schema}


def readme() -> str:
    """The chart's README: a table of every value with its default and its `# --` comment."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    rows = [f"| `{path}` | {default} | {text} |" for path, default, text in _documented()]
    return "\n".join([f"# {chart['name']}", "", chart["description"], "", *_INTRODUCTION, *rows, ""])


_INTRODUCTION = (
    "Install it into the namespace where the pipelines run (Kubeflow's own, or a profile's):",
    "",
    "```sh",
    "make publish REGISTRY=registry.example/me      # images and this chart, by digest",
    "helm install eosin oci://registry.example/me/charts/eosin --namespace NAMESPACE \\",
    "  --set s3.runs=s3://BUCKET/runs --set s3.existingSecret=SECRET",
    "helm test eosin --namespace NAMESPACE --logs",
    "```",
    "",
    "The cluster needs the JobSet API (`manifests/prerequisites`). How-tos: `docs/how-to/`.",
    "",
    "This file is generated from `values.yaml` by `python helm/generate.py`.",
    "",
    "## Values",
    "",
    "| key | default | what it does |",
    "|---|---|---|",
)


def _schema_of(value: Any, path: str, cluster: dict[str, Any]) -> dict[str, Any]:
    if path == "cluster":
        return cluster
    if path == "taskPods":
        pod = _plain(TaskPodConfig.model_json_schema())
        pod.pop("$defs")  # tolerations, which the cluster's pools define too
        return {"type": "object", "additionalProperties": pod}
    if path in _KNOWN:
        return _KNOWN[path]
    if isinstance(value, dict):
        inner = {key: _schema_of(item, f"{path}.{key}".lstrip("."), cluster) for key, item in value.items()}
        return {"type": "object", "additionalProperties": False, "properties": inner}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": kinds[type(value)]}


def _plain(schema: Any) -> Any:
    """A schema less the titles and defaults that pydantic adds, which only make it long."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _plain(item) for name, item in value.items()} if key == "properties" else _plain(value)
        for key, value in schema.items()
        if key not in {"title", "default"}
    }


def _documented() -> list[tuple[str, str, str]]:
    """(path, default, text) of every value with a `# --` comment, in the file's order."""
    rows: list[tuple[str, str, str]] = []
    path: list[str] = []
    comment: list[str] = []
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for line in (CHART / "values.yaml").read_text().splitlines():
        if line.strip().startswith("#"):
            comment = _grown(comment, line.strip("# ").strip(), begins="# --" in line)
        elif found := re.match(r"^( *)([A-Za-z0-9]+):", line):
            path = [*path[: len(found.group(1)) // 2], found.group(2)]
            if comment:
                rows.append(_row(path, values, comment))
            comment = []
    return rows


def _grown(comment: list[str], text: str, *, begins: bool) -> list[str]:
    if begins:
        return [text.removeprefix("-- ")]
    return [*comment, text] if comment else []


def _row(path: list[str], values: dict[str, Any], comment: list[str]) -> tuple[str, str, str]:
    value: Any = values
    for key in path:
        value = value[key]
    default = f"`{json.dumps(value)}`"
    said = [line.removeprefix("@default -- ") for line in comment if line.startswith("@default")]
    text = " ".join(line for line in comment if not line.startswith("@default"))
    return ".".join(path), said[0] if said else default, text.replace("|", "\\|")


def main(arguments: list[str]) -> int:
    wanted = {
        CHART / "values.schema.json": json.dumps(values_schema(), indent=2, ensure_ascii=False) + "\n",
        CHART / "README.md": readme(),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"error: {path} is stale: run python helm/generate.py", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
