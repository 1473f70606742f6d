"""What docs/reference says is what the code has, and it says something of everything."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from eosin.config.run import RunConfig
from eosin.config.tasks import TaskPodConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_page_has_drifted(generate: ModuleType, tmp_path: Path) -> None:
    for page in generate.main(tmp_path):
        ours = ROOT / "docs/reference" / page.relative_to(tmp_path)
        assert ours.read_text() == page.read_text(), f"{ours} differs: run `make compile`"


@pytest.mark.parametrize("root", [RunConfig, TaskPodConfig])
def test_every_configuration_key_has_a_sentence(generate: ModuleType, root: type) -> None:
    keys = [
        (f"{path}.{name}", field.description)
        for path, section in generate._sections(root, "")
        for name, field in section.model_fields.items()
    ]
    assert keys and not [name for name, sentence in keys if not sentence]
    assert not [name for name, sentence in keys if not sentence.endswith((".", "…", "?"))]
