"""What lies compiled in the repository is what the sources compile to."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


PIPELINES = {
    "pretrain": ["run"],
    "evaluate": ["run", "teacher"],
    "retrain": ["name", "registry", "run"],
    "scaling_study": ["run"],
}
"""Each with the parameters it cannot do without."""


def test_every_source_is_compiled_and_tested() -> None:
    assert {path.stem for path in (ROOT / "pipelines").glob("*.yaml")} == set(PIPELINES)
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"eosin_pipelines.{name}" in makefile for name in PIPELINES), "`make compile` leaves one out"


def without_patch_version(compiled: str) -> str:
    """A compiled pipeline without the third number of the compiler's version: a release that only mends the
    compiler changes nothing that a cluster runs, and is no reason to compile again."""
    return re.sub(r"^(sdkVersion: kfp-\d+\.\d+)\.\S+$", r"\1", compiled, flags=re.M)


@pytest.mark.parametrize("name", PIPELINES)
def test_yaml_has_not_drifted(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"eosin_pipelines.{name}")
    fresh = module.compile_to(tmp_path / f"{name}.yaml").read_text()
    assert without_patch_version(module.COMPILED.read_text()) == without_patch_version(fresh), (
        "run `make compile`"
    )


def test_drift_is_more_than_a_patch_version_of_the_compiler() -> None:
    assert without_patch_version("a: 1\nsdkVersion: kfp-2.17.0\nb: 2") == without_patch_version(
        "a: 1\nsdkVersion: kfp-2.17.3\nb: 2"
    )
    for other in ("a: 1\nsdkVersion: kfp-2.18.0\nb: 2", "a: 1\nsdkVersion: kfp-2.17.0\nb: 3"):
        assert without_patch_version("a: 1\nsdkVersion: kfp-2.17.0\nb: 2") != without_patch_version(other)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_parameter_is_described_and_few_are_required(name: str) -> None:
    spec = next(iter(yaml.safe_load_all((ROOT / f"pipelines/{name}.yaml").read_text())))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert all(parameter.get("description") for parameter in parameters.values())
    required = [name for name, value in parameters.items() if "defaultValue" not in value]
    assert required == PIPELINES[name]


@pytest.mark.parametrize("name", PIPELINES)
def test_no_component_installs_packages_at_run_time(name: str) -> None:
    assert "pip install" not in (ROOT / f"pipelines/{name}.yaml").read_text()


@pytest.mark.parametrize("module", ["torch", "timm", "kfp", "boto3", "pyarrow", "cv2", "openslide"])
def test_help_imports_nothing_heavy(module: str) -> None:
    import subprocess
    import sys

    code = f"import sys, eosin.cli.app; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
