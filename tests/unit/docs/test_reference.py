"""What docs/reference says is what the code has, and it says something of everything."""

import json
from pathlib import Path

import jsonschema
import pytest

from docs import generate
from eosin.config.cluster import TaskPodConfig
from eosin.config.run import RunConfig
from eosin.records import TeacherCard

ROOT = Path(__file__).parents[3]


def test_no_page_has_drifted(tmp_path: Path) -> None:
    for page in generate.main(tmp_path):
        ours = ROOT / "docs/reference" / page.relative_to(tmp_path)
        assert ours.read_text() == page.read_text(), f"{ours} differs: run `make compile`"


@pytest.mark.parametrize("root", [RunConfig, TaskPodConfig])
def test_every_configuration_key_has_a_sentence(root: type) -> None:
    keys = [
        (f"{path}.{name}", field.description)
        for path, section in generate._sections(root, "")
        for name, field in section.model_fields.items()
    ]
    assert keys and not [name for name, sentence in keys if not sentence]
    assert not [name for name, sentence in keys if not sentence.endswith((".", "…", "?"))]


def test_every_key_of_the_bucket_is_described() -> None:
    pages = generate.bucket_pages
    found = {name: pages.keys(name) for name in pages.LAYOUTS}
    assert dict(found["RunLayout"])["checkpoints/step-STEP/COMPLETE.json"]
    assert not [key for keys in found.values() for key, meaning in keys if not meaning]


def test_every_field_of_every_record_has_a_sentence() -> None:
    pages = generate.bucket_pages
    assert {"MetricRecord", "SnapshotManifest", "LeaseRecord"} <= {
        r.__name__ for r in pages.published_records()
    }
    for record in pages.published_records():
        for part in (record, *pages._parts(record)):
            missing = [name for name, field in part.model_fields.items() if not field.description]
            assert not missing, f"{part.__name__}: {missing}"


def test_every_record_lies_at_a_key() -> None:
    layout = generate.bucket_pages.bucket_layout()
    names = [record.__name__ for record in generate.bucket_pages.published_records()]
    assert not [name for name in names if f"(records.md#{name.lower()})" not in layout]


def test_published_bytes_are_valid_by_their_schema() -> None:
    card = TeacherCard(
        name="step-00000003", step=3, arch="vit_small_patch16_224", arch_args={}, img_px=224,
        num_features=384, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), mpp=(0.5,), weights_sha256="0" * 64,
    )  # fmt: skip
    schema = json.loads(generate.bucket_pages.schemas()["schemas/TeacherCard.json"])
    jsonschema.validate(json.loads(card.to_json()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(card.to_json()), "img_px": "large"}, schema)


def test_samples_of_output_are_what_the_program_prints() -> None:
    for page in generate.SAMPLED:
        text = page.read_text()
        assert "<!-- sample: " in text and generate.with_samples(text) == text, f"{page}: run `make compile`"


def test_a_sample_that_differs_is_seen() -> None:
    page = generate.SAMPLED[0].read_text()
    for begin, end in (("RankMe", "RankMy"), ("model: ", "")):
        changed = page.replace(begin, end)
        assert changed != page and generate.with_samples(changed) != changed
