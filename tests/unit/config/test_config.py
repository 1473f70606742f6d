"""The configuration: what it refuses, and how it says so."""

import re
from collections.abc import Iterator
from typing import Annotated, get_args, get_origin

import pytest
from pydantic import BaseModel

from eosin.config import RunConfig, difference, dump_config, load_config, with_overrides
from eosin.config.load import parse_yaml
from eosin.errors import UserError


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(text, source="my.yaml", overrides=overrides)
    return caught.value.message


def test_defaults_survive_a_dump_and_a_load() -> None:
    assert load_config(dump_config(RunConfig())) == RunConfig()


def test_empty_file_is_the_defaults() -> None:
    assert load_config("") == RunConfig()


def test_unknown_key_names_line_and_nearest_key() -> None:
    assert refused("seed: 1\ntrain:\n  num_steps: 3\n  batch_sise: 64\n") == (
        "my.yaml:4: unknown key train.batch_sise; did you mean train.batch_size?"
    )


def test_unknown_section_names_the_nearest_section() -> None:
    assert "did you mean patches?" in refused("patchs:\n  patch_px: 3\n")


def test_key_in_the_wrong_section_is_found_in_the_right_one() -> None:
    assert "did you mean train.optimizer.clip_grad_norm?" in refused("model:\n  clip_grad_norm: 2\n")


def test_a_mistake_in_an_override_is_not_blamed_on_the_file() -> None:
    text = "train:\n  num_steps: 3\n"
    assert refused(text, "train.num_setps=4") == (
        "override 'train.num_setps=4': unknown key train.num_setps; did you mean train.num_steps?"
    )
    assert "override 'train.num_steps=many': train.num_steps" in refused(text, "train.num_steps=many")
    assert refused(text, "train=7") == "override 'train=7': train is a section of keys, not 7"
    assert refused("train:\n  num_steps: x\n", "train.batch_size=8").startswith("my.yaml:2: train.num_steps")


def test_a_section_whose_keys_are_all_commented_out_is_named() -> None:
    assert refused("train:\n  # num_steps: 3\n") == "my.yaml:1: train is a section of keys, not None"


def test_every_mistake_is_reported_at_once() -> None:
    message = refused("train:\n  num_steps: none\npatches:\n  min_foreground: 2\n")
    assert "my.yaml:2: train.num_steps" in message and "my.yaml:4: patches.min_foreground" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1", "is not YAML: line"),
        ("- 1\n- 2\n", "must be a mapping"),
        ("train: 7\n", "train"),
        ("train:\n  batch_size: 33\n", "33 = 32 × 1 + 1"),
        ("patches:\n  mpp: [0.5, 1.0]\n  mpp_weights: [1.0]\n", "mpp_weights has 1 entries, mpp has 2"),
        ("patches:\n  mpp: []\n", "at least one value"),
        ("model:\n  arch_args: {patch_size: 14}\naugment:\n  local_px: 96\n", "96 = 6 × 14 + 12"),
        ("train:\n  elastic: {min_nodes: 3, max_nodes: 2}\n", "min_nodes exceeds"),
        ("evaluate:\n  tasks: [{kind: unsupervised}, {kind: unsupervised}]\n", "share a name: heldout"),
    ],
)
def test_impossible_configuration_is_refused_with_the_arithmetic(text: str, part: str) -> None:
    assert part in refused(text)


def test_overrides_come_last_and_are_parsed_as_yaml() -> None:
    config = load_config(
        "train:\n  num_steps: 5\n",
        overrides=["train.num_steps=9", "patches.mpp=[0.5, 1]", "index.uri=s3://b/a=b"],
    )
    assert (config.train.num_steps, config.patches.mpp, config.index.uri) == (9, (0.5, 1.0), "s3://b/a=b")


@pytest.mark.parametrize("override", ["train.num_steps", "=3", "train..x=1", "seed.deeper=1", "seed=[1"])
def test_malformed_override_is_named(override: str) -> None:
    assert repr(override) in refused("seed: 3\n", override)


def test_unknown_override_names_the_nearest_key() -> None:
    assert "did you mean train.num_steps?" in refused("", "train.num_step=3")


def test_an_unknown_section_is_put_down_to_the_override_or_to_the_line_that_names_it() -> None:
    told = refused("train:\n  num_steps: 3\n", "train.optimiser.lr=1")
    assert told.startswith("override 'train.optimiser.lr=1': unknown key train.optimiser; did you mean")
    written = refused("train:\n  optimiser: {}\n", "train.optimiser.lr=1")
    assert ":2" in written.partition(" ")[0] and "unknown key train.optimiser" in written


@pytest.mark.parametrize(
    ("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ('"off"', "off")]
)
def test_a_switch_is_what_is_written_though_yaml_reads_a_truth_value(written: str, meant: str) -> None:
    config = load_config("recipe: demo", overrides=[f"train.elastic.memory_snapshots={written}"])
    assert config.train.elastic.memory_snapshots == meant
    assert load_config(dump_config(config)) == config


def test_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 3  # type: ignore[misc]


def test_digest_ignores_speed_and_placement_but_not_science() -> None:
    base = RunConfig().digest()
    same = load_config(
        "", overrides=["index.num_shards=7", "cluster.namespace=other", "patches.reader=stage"]
    )
    assert same.digest() == base
    assert load_config("", overrides=["seed=1"]).digest() != base
    assert load_config("", overrides=["augment.num_local=4"]).digest() != base
    assert load_config("", overrides=["model.arch_args={depth: 2}"]).digest() != base
    assert load_config("", overrides=["evaluate.checkpoints=last"]).digest() == base


def test_a_run_goes_on_under_an_eosin_that_knows_more_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "train: {num_steps: 7}\nmodel: {arch_args: {depth: 2}}\n"
    before = load_config(text).digest()
    identity = RunConfig.identity
    monkeypatch.setattr(RunConfig, "identity", lambda self: {**identity(self), "later": {"key": 1}})
    assert load_config(text).digest() == before


def test_difference_names_each_leaf() -> None:
    lines = difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})
    assert lines == ["a.c: 2 → 3", "d: None → 4"]


# What trains on nothing, or on infinities, or asks for more than any machine has.
HUGE = [
    *((f"{key}={value}", "must be less than") for key, value in [
        ("train.batch_size", 10**18), ("train.num_steps", 10**18), ("train.koleo.weight", 1e300),
        ("train.gram.weight", 1e30), ("train.dino.student_temperature", 1e18),
        ("train.kde.concentration", 1e18), ("train.dino.center_momentum", 1),
        ("train.optimizer.weight_decay", 1e18),
        ("train.optimizer.patch_embed_lr_multiplier", 1e18), ("train.elastic.join_timeout_s", 1e18),
        ("train.collapse.sample_size", 10**18), ("train.jepa.predictor_depth", 10**18),
        ("train.paka.out_dim", 10**18), ("model.dino_head.num_prototypes", 10**18),
        ("model.dino_head.num_layers", 10**18), ("model.dino_head.hidden_dim", 10**30),
        ("model.layer_scale", 1e300), ("augment.num_local", 10**18), ("augment.max_aspect", 1e18),
        ("augment.stain_jitter", 1e18),
    ]),
    *((f"{key}={value}", "must be greater than") for key, value in [
        ("train.dino.teacher_temperature", 1e-30), ("train.optimizer.layer_decay", 1e-300),
        ("train.elastic.hang_timeout_s", 0.001), ("train.jepa.mask_probability", 0),
    ]),
    ("augment.global_scale=[1e-30, 1e-30]", "must be greater than or equal to 0.0001"),
    ("augment.blur_sigma_px=[0.1, 1000000000]", "0.01 ≤ low ≤ high ≤ global_px"),
    ("augment.blur_sigma_px=[1e-300, 1e-300]", "0.01 ≤ low ≤ high ≤ global_px"),
    ("augment.std=[1e-300, 1, 1]", "must be greater than or equal to 0.01"),
    ("model.arch_args={depth: 1000000000}", "no size of a network that can be built; at most 1024"),
    ("model.arch_args={reg_tokens: 1000000000}", "at most 65536"),
    ("train.trackers=[wandb, wandb]", "names one twice"),
]  # fmt: skip
MISTAKES = [
    ("train.optimizer.clip_grad_norm=-1", "must be greater than or equal to 1e-06"),
    ("train.optimizer.clip_grad_norm=0", "must be greater than or equal to 1e-06"),
    ("train.optimizer.beta1=1", "must be less than 1"),
    ("train.optimizer.beta2=1.5", "must be less than 1"),
    ("train.optimizer.min_lr=1", "above the largest learning rate"),
    ("train.momentum=1", "must be less than 1"),
    ("train.ibot.mask_ratio=[0.5, 0.1]", "needs its least value first"),
    ("train.distill.teacher='  '", "train.distill.teacher: must not be empty"),
    ("model.layer_scale=-1", "must be greater than or equal to 0"),
    ("augment.local_px=240", "augment.local_px 240 is larger than augment.global_px 224"),
    ("augment.global_px=512", "augment.global_px 512 is larger than patches.patch_px 256"),
    ("augment.global_scale=[0.05, 0.1]", "lies above global_scale"),
    ("augment.mean=[123.7, 116.3, 103.5]", "must be less than or equal to 1"),
    ("augment.std=[58.4, 57.1, 57.4]", "must be less than or equal to 1"),
    *HUGE,
    ("patches.mpp_weights=[-1, 1, 1, 1]", "must be greater than or equal to 0"),
    ("patches.mpp_weights=[0, 0, 0, 0]", "at least one weight above 0"),
    ("evaluate.tasks=[{kind: slide, name: a, dataset: b, abmil: {hidden_dims: [0]}}]",
     "greater than or equal to 1"),
    ("evaluate.tasks=[{kind: segmentation, name: a, dataset: b, classes: [x, y], background: 2}]",
     "none of the 2 classes"),
    ("train.num_steps=true", "must be a whole number"),
    ("patches.mpp=[yes]", "must be a number"),
    (f"seed={2**63}", "must be less than or equal to"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "allowed"), MISTAKES)
def test_what_can_only_be_a_mistake_is_refused_with_key_and_what_is_allowed(
    override: str, allowed: str
) -> None:
    message = refused("", override)
    assert allowed in message and override.partition("=")[0].rpartition(".")[2] in message


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ("{method: dino, jepa: {weight: 1}}", "jepa is part of method dinov2 alone"),
        ("{method: dino, kde: {weight: 1}}", "kde is part of method dinov2 alone"),
        ("{dino: {teacher_temperature_warmup: 0.08}}", "set it to 0.07 (teacher_temperature) or less"),
        ("{collapse: {min_rankme: 70, sample_size: 64}}", "min_rankme 70 is above sample_size 64"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(train: str, words: str) -> None:
    assert words in refused(f"train: {train}\n")


def float_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every key of the tree that takes a number with a fraction, with a value that is not finite."""
    for name, field in section.model_fields.items():
        annotation = field.annotation
        leaves = [get_args(each)[0] if get_origin(each) is Annotated else each
                  for each in get_args(annotation)]  # fmt: skip
        if get_origin(annotation) is tuple and float not in leaves:
            continue  # a list of sections
        inner = next((each for each in (annotation, *get_args(annotation)) if isinstance(each, type)
                      and issubclass(each, BaseModel)), None)  # fmt: skip
        if inner is not None:
            yield from float_keys(inner, f"{prefix}{name}.")
        elif float in (annotation, *leaves):
            size = len(get_args(annotation)) if get_origin(annotation) is tuple else 0
            for word in (".inf", "-.inf", ".nan"):
                yield f"{prefix}{name}={'[' + ', '.join([word] * size) + ']' if size else word}"


@pytest.mark.parametrize("override", list(float_keys()))
def test_no_key_takes_a_number_that_is_not_finite(override: str) -> None:
    assert "finite number" in refused("", override)


def test_the_walk_over_numbers_finds_them() -> None:
    keys = {override.partition("=")[0] for override in float_keys()}
    assert len(keys) > 40 and {"train.optimizer.lr", "augment.mean", "model.layer_scale"} <= keys


def test_numbers_of_the_architecture_are_finite_too() -> None:
    assert "mlp_ratio must be a finite number" in refused("model:\n  arch_args: {mlp_ratio: .nan}\n")


def test_no_local_crops_need_no_size() -> None:
    assert load_config("", overrides=["augment.num_local=0", "augment.local_px=999"]).augment.num_local == 0


def test_a_published_patch_set_says_its_own_size() -> None:
    load_config("", overrides=["patches.source=s3://b/set", "patches.patch_px=96"])


def test_a_section_that_stands_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(UserError, match=r"my\.yaml: key 'train' stands twice, on lines 1 and 4"):
        load_config("train:\n  num_steps: 3\nseed: 1\ntrain:\n  seed: 2\n", source="my.yaml")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("train:\n  optimizer:\n    lr: 1\n    lr: 2\n", "lines 3 and 4"),
        ("train: {num_steps: 1, num_steps: 2}\n", "line 1"),
        ('seed: 1\n"seed": 2\n', "lines 1 and 2"),
    ],
)
def test_a_key_that_stands_twice_is_refused_wherever_it_stands(text: str, lines: str) -> None:
    assert lines in refused(text)
    assert "stands twice" in refused("", "train={num_steps: 1, num_steps: 2}")


def test_merged_keys_are_no_duplicates() -> None:
    text = "x: &x {num_steps: 3}\n".replace("x: ", "train: ") + "description: a\n"
    assert load_config(text).train.num_steps == 3
    merged = parse_yaml("a: &a {k: 1, l: 2}\nb: {<<: *a, k: 3}\n", "text")
    assert merged["b"] == {"k": 3, "l": 2}


def test_a_mapping_is_taken_as_it_is_and_left_as_it_was() -> None:
    tree = {"train": {"num_steps": 5}}
    assert load_config(tree, overrides=["train.num_steps=9"]).train.num_steps == 9
    assert tree == {"train": {"num_steps": 5}}


def test_part_of_a_configuration_is_replaced_without_text() -> None:
    config = with_overrides(load_config("seed: 3\n"), ["train.num_steps=9"])
    assert (config.seed, config.train.num_steps) == (3, 9)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("augment.mean=0.5", "augment.mean: must be a list"),
        ("augment.mean=[0.5, 0.5]", "augment.mean: has too few entries"),
        ("evaluate.tasks=[{kind: knnn, name: a, dataset: b}]", "did you mean knn?"),
        ("evaluate.tasks=[{name: a}]", "evaluate.tasks.0: kind is missing"),
        ("evaluate.tasks=[{kind: knn, name: a, dataset: b, kk: 3}]", "did you mean evaluate.tasks.0.k?"),
        ("cluster.pools=[{nam: a}]", "did you mean cluster.pools.0.name?"),
        ("cluster.pools=[{name: A}]", "a-z, 0-9 and hyphens, 12 characters at most"),
        ("patches.sets.tiles={mppp: 1}", "did you mean patches.sets.tiles.mpp?"),
        ("patches.sets.tiles.mpp=abc", "patches.sets.tiles.mpp: must be a number"),
        ("mpp=0.5", "did you mean index.tissue.mpp or patches.mpp?"),
        ("trian.num_steps=3", "did you mean train?"),
    ],
)
def test_mistakes_are_told_in_the_words_of_yaml(override: str, words: str) -> None:
    message = refused("seed: 1\n", override)
    assert words in message and f"override {override!r}" in message
    assert not re.search(r"tuple|Input|tag|discriminator", message)
