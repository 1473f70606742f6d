"""Validate rendered objects against the schemas that an API server would use."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.samples import sample

BUILT_IN_VERSION = "1.33"


def crd_errors(manifest: dict[str, Any], crd_file: str) -> list[str]:
    """What the CRD's own schema says against `manifest`; a field it does not know is an error."""
    jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema")
    crd = yaml.safe_load(sample("crds", crd_file).read_text())
    _, _, version = manifest["apiVersion"].partition("/")
    (served,) = [entry for entry in crd["spec"]["versions"] if entry["name"] == version]
    schema = _strict(served["schema"]["openAPIV3Schema"], top=True)
    assert manifest["kind"] == crd["spec"]["names"]["kind"]
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def built_in_errors(manifest: dict[str, Any]) -> list[str]:
    """What the schema of a built-in kind says against `manifest`, unknown fields included."""
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    try:
        validate.validate(manifest, BUILT_IN_VERSION, strict=True)
    except validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def load_all(text: str) -> list[dict[str, Any]]:
    """Every object of a stream of YAML documents."""
    return [document for document in yaml.safe_load_all(text) if document]


def _strict(schema: dict[str, Any], *, top: bool = False) -> dict[str, Any]:
    """An OpenAPI v3 structural schema as JSON Schema that refuses unknown fields."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if strict.pop("nullable", False) and "type" in strict:
        strict["type"] = [strict["type"], "null"]
    strict.pop("format", None)
    if "properties" in strict:
        strict["properties"] = {key: _strict(value) for key, value in strict["properties"].items()}
        if top:
            strict["properties"]["metadata"] = {"type": "object"}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    if isinstance(strict.get("additionalProperties"), dict):
        strict["additionalProperties"] = _strict(strict["additionalProperties"])
    if "items" in strict:
        strict["items"] = _strict(strict["items"])
    return strict


def check_golden(path: Path, text: str, *, update: bool) -> None:
    """Compare `text` with the golden file at `path`, or write it with EOSIN_UPDATE_GOLDEN=1."""
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"{path} is missing: write it with EOSIN_UPDATE_GOLDEN=1"
    assert text == path.read_text(), (
        f"{path.name} has changed: read the difference, then EOSIN_UPDATE_GOLDEN=1"
    )
