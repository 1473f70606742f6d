"""What lies compiled in the repository is what the sources compile to."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def test_pretrain_yaml_has_not_drifted(tmp_path: Path) -> None:
    from eosin_pipelines.pretrain import COMPILED, compile_to

    fresh = compile_to(tmp_path / "pretrain.yaml").read_text()
    assert COMPILED.read_text() == fresh, "run `make compile`"


def test_every_parameter_is_described_and_only_run_is_required() -> None:
    spec = next(iter(yaml.safe_load_all((ROOT / "pipelines/pretrain.yaml").read_text())))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert all(parameter.get("description") for parameter in parameters.values())
    required = [name for name, value in parameters.items() if "defaultValue" not in value]
    assert required == ["run"]


def test_no_component_installs_packages_at_run_time() -> None:
    assert "pip install" not in (ROOT / "pipelines/pretrain.yaml").read_text()


def test_reference_pages_have_not_drifted(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for page in generate.main(tmp_path):
        assert (ROOT / "docs/reference" / page.name).read_text() == page.read_text(), "run `make compile`"


@pytest.mark.parametrize("module", ["torch", "timm", "kfp", "boto3", "pyarrow", "cv2", "openslide"])
def test_help_imports_nothing_heavy(module: str) -> None:
    import subprocess
    import sys

    code = f"import sys, eosin.cli.app; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
