"""Object keys, all of them: nothing else builds a key out of strings.

Keys are relative to the URI they belong to (`IndexLayout` to an index, `RunLayout` to a run), so
that a store opened at that URI takes them as they are.
"""

import hashlib
import re

COMPLETE = "COMPLETE.json"
RANDOM_INIT = "random-init"
TEACHER_CARD = "model.json"
TEACHER_WEIGHTS = "model.safetensors"
TEACHER_TIMM_CONFIG = "config.json"
TEACHER_README = "README.md"


class FeaturesLayout:
    """Keys of features made from an index alone, one file a slide."""

    FEATURES = "features/"
    SPEC = "features.json"
    """What the features are, pinned by the first worker: `FeaturesSpec`."""
    MANIFEST = "manifest.json"
    """Published last, once every slide is done: `FeaturesManifest`."""

    @staticmethod
    def slide(name: str, suffix: str) -> str:
        """Features and coordinates of one slide."""
        return f"features/{name}.{suffix}"

    @staticmethod
    def left_out(name: str) -> str:
        """Why a slide has no features: `SlideLeftOut`."""
        return f"left-out/{name}.json"


class ClustersLayout:
    """Keys of clusters of an index's patches."""

    CELLS = "cells.parquet"
    """The cluster of every patch: digest of its slide's index row, left and top edge in level-0 pixels."""
    MANIFEST = "clusters.json"
    """How the clusters make up a tree: `ClustersManifest`, published last."""


class IndexLayout:
    """Keys under an index URI: immutable shards, immutable snapshots, one moving pointer."""

    LATEST = "LATEST.json"
    """Which snapshot is the newest: `Latest`. The one object of an index that moves."""
    SNAPSHOTS = "snapshots/"
    SCANS = "scans/"
    TILES = "tiles/"

    @staticmethod
    def shard_marker(scan_id: str, shard: int, num_shards: int) -> str:
        """Of one shard of a scan: `ScanShard`, published last, once every part of the shard is there."""
        return f"scans/{scan_id}/{shard:05d}-of-{num_shards:05d}.json"

    @staticmethod
    def shard_part(scan_id: str, shard: int, num_shards: int, part: int) -> str:
        """Rows of one stretch of a shard, so that a scan that was killed goes on where it stood."""
        return f"scans/{scan_id}/{shard:05d}-of-{num_shards:05d}/{part:05d}.parquet"

    @staticmethod
    def scan_series(scan_id: str) -> str:
        """What the objects are whose names do not tell, DICOM instances by the slides they make up:
        `ScanSeries`."""
        return f"scans/{scan_id}/series.json"

    @staticmethod
    def scan_listing(scan_id: str) -> str:
        """What was listed when the scan began, a row an object; what comes later is for the next scan."""
        return f"scans/{scan_id}/listing.parquet"

    @staticmethod
    def is_listing(key: str) -> bool:
        """Whether `key` is that of a scan's listing."""
        return key.startswith("scans/") and key.endswith("/listing.parquet")

    @staticmethod
    def scan_overrides(scan_id: str) -> str:
        """The overrides as they were when the scan began."""
        return f"scans/{scan_id}/overrides.csv"

    @staticmethod
    def scan_tissue_model(scan_id: str) -> str:
        """The ONNX model of tissue as it was when the scan began."""
        return f"scans/{scan_id}/tissue.onnx"

    @staticmethod
    def scan_marker(scan_id: str) -> str:
        """What all shards of a scan work from: `ScanListing`, published last, before any shard begins."""
        return f"scans/{scan_id}/listing.json"

    @staticmethod
    def scan(scan_id: str) -> str:
        """One scan: the same slides, overrides and settings have the same id."""
        return f"scans/{scan_id}/"

    @staticmethod
    def tiles(slide_digest: str) -> str:
        """Fixed-width tile table of one slide and, behind it, a small picture as JPEG; addressed by the
        digest of (uri, etags, indexer version)."""
        return f"tiles/{slide_digest[:2]}/{slide_digest}.tiles"

    @staticmethod
    def other_reading(slide_digest: str) -> str:
        """What another reader shows otherwise of the slide, in words; empty where both agree."""
        return f"tiles/{slide_digest[:2]}/{slide_digest}.txt"

    @staticmethod
    def snapshot(snapshot_id: str) -> str:
        """One snapshot: all slides as they were, never changed."""
        return f"snapshots/{snapshot_id}/"

    @staticmethod
    def snapshot_rows(snapshot_id: str) -> str:
        """A row a slide, sorted by key; its columns are below."""
        return f"snapshots/{snapshot_id}/slides.parquet"

    @staticmethod
    def snapshot_masks(snapshot_id: str) -> str:
        """The bits of the slides' tissue masks, one after the other; slides.parquet says where each lies."""
        return f"snapshots/{snapshot_id}/masks.bin"

    @staticmethod
    def snapshot_marker(snapshot_id: str) -> str:
        """What the snapshot holds: `SnapshotManifest`, published last."""
        return f"snapshots/{snapshot_id}/{COMPLETE}"


class RunLayout:
    """Keys under a run URI."""

    CONFIG = "config.yaml"
    """The configuration of the run, every default written out; published first, and once."""
    SCAN = "scan.json"
    """The scan that the run's snapshot is made by, taken when it is planned: `ScanPin`."""
    INDEX_PIN = "index.json"
    """The snapshot that the run reads: `IndexPin`, published once."""
    TRAINING_DONE = "training.json"
    """Training ended, and these are its teachers: `TrainingDone`, published last of all training."""
    LEASE = "lease.json"
    """Which world of training processes may publish, the one that started last: `LeaseRecord`."""
    SECRET = "secret.json"
    """What the run's processes know each other by; names their snapshots in memory: `SecretRecord`."""
    RETRAIN = "retrain.json"
    """The model of the registry that a retraining began with: `RetrainBase`."""
    STUDY = "study.json"
    """What a study varies; its runs lie under `variants/`: `Study`."""
    VARIANTS = "variants/"
    CHECKPOINTS = "checkpoints/"
    TEACHERS = "teachers/"
    METRICS = "metrics/"
    EMBEDDINGS = "embeddings/"
    PATCH_SETS = "patches/"
    SHARD_SUFFIXES = (".parquet", ".tar")
    QUARANTINE = "quarantine/"
    """Positions that crashed or hung a decoder: one immutable object each."""
    PICTURES = "pictures/"
    KUBEFLOW_RUN = "kubeflow.json"
    """Where in Kubeflow the run goes on, or went on last: `KubeflowRun`."""
    FAILURES = "failures/"
    """Last errors of steps that have not succeeded since."""
    LOGS = "logs/"
    SUMMARY_HTML = "summary/summary.html"
    """The report: one page that needs no network."""
    SUMMARY_MD = "summary/summary.md"
    """The headline, for a pull request."""
    SUMMARY_JSON = "summary/summary.json"
    """Every figure, for machines: a `RunSummary`."""

    @staticmethod
    def tensorboard(file: str) -> str:
        """One of TensorBoard's event files, under the name it gave it."""
        return f"tensorboard/{file}"

    @staticmethod
    def checkpoint(step: int) -> str:
        """State of training after `step` steps, in shares of the ranks that wrote it."""
        return f"checkpoints/step-{step:08d}/"

    @staticmethod
    def checkpoint_marker(step: int) -> str:
        """What the checkpoint is made of: `CheckpointMarker`, published last."""
        return f"checkpoints/step-{step:08d}/{COMPLETE}"

    @staticmethod
    def checkpoint_part(step: int, part: str) -> str:
        """One safetensors file of a checkpoint; `part` names world, rank and number."""
        return f"checkpoints/step-{step:08d}/{part}.safetensors"

    @staticmethod
    def checkpoint_receipt(step: int, share: str) -> str:
        """What one rank has written into a checkpoint: `ShareReceipt`; `share` names world and rank."""
        return f"checkpoints/step-{step:08d}/{share}.json"

    @staticmethod
    def teacher(model: str) -> str:
        """Folder of one exported teacher; `model` is `step-00000100` or a baseline's name."""
        return f"teachers/{model}/"

    @staticmethod
    def teacher_weights(model: str) -> str:
        """Weights of the backbone as timm names them, without mask token and heads, float32."""
        return f"teachers/{model}/{TEACHER_WEIGHTS}"

    @staticmethod
    def teacher_timm_config(model: str) -> str:
        """What `timm.create_model("local-dir:…")` reads beside the weights."""
        return f"teachers/{model}/{TEACHER_TIMM_CONFIG}"

    @staticmethod
    def teacher_readme(model: str) -> str:
        """How to load the teacher, and what it was trained on, for people."""
        return f"teachers/{model}/{TEACHER_README}"

    @staticmethod
    def teacher_card(model: str) -> str:
        """What the teacher is: `TeacherCard`, published last. Its presence says that the export is whole."""
        return f"teachers/{model}/{TEACHER_CARD}"

    @staticmethod
    def metric(model: str, task: str) -> str:
        """One evaluation: `MetricRecord`. A baseline's name is made a key as `record_key` says."""
        return f"metrics/{model}/{task}.json"

    @staticmethod
    def example(model: str, task: str, kind: str) -> str:
        """JPEG of examples beside a task's figures: `kind` is neighbours, maps or panel."""
        return f"pictures/{model}/{task}.{kind}.jpg"

    @staticmethod
    def embeddings(digest: str) -> str:
        """Features of one dataset by one model; `digest` is of model, data and transform."""
        return f"embeddings/{digest}.safetensors"

    @staticmethod
    def slide_embeddings(digest: str, slide_digest: str) -> str:
        """Of the patches of one slide; `digest` is of the model and of how patches are drawn."""
        return f"embeddings/{digest}/{slide_digest}.safetensors"

    @staticmethod
    def slide_index(name: str) -> str:
        """An index of slides that an evaluation draws patches from, in the form of any other index."""
        return f"slide-indexes/{name}/"

    @staticmethod
    def patch_set(name: str) -> str:
        """One patch set, decoded."""
        return f"patches/{name}/"

    @staticmethod
    def patch_set_spec(name: str) -> str:
        """What the set is, pinned by the first who decodes a part of it: `PatchSetSpec`."""
        return f"patches/{name}/set.json"

    @staticmethod
    def patch_set_shard(name: str, shard: int, num_shards: int, suffix: str = "parquet") -> str:
        """Patches of a sampled set or of the held-out one; `suffix` is parquet or tar. The same key with
        the suffix json is its marker, published after it: `ShardMarker`."""
        return f"patches/{name}/{shard:05d}-of-{num_shards:05d}.{suffix}"

    @staticmethod
    def patch_set_slide_shard(name: str, slide: int, part: int, num_parts: int, suffix: str) -> str:
        """Part `part` of the patches of a grid's slide number `slide`."""
        return f"patches/{name}/{slide:06d}-{part:04d}-of-{num_parts:04d}.{suffix}"

    @staticmethod
    def slide_part_of(marker_key: str) -> tuple[int, int, int] | None:
        """Slide, part and number of parts of a slide's shard, given its marker's key; None for other keys."""
        match = re.fullmatch(r"patches/[^/]+/(\d{6})-(\d{4})-of-(\d{4})\.json", marker_key)
        return (int(match[1]), int(match[2]), int(match[3])) if match else None

    @staticmethod
    def patch_set_marker_of(shard_key: str) -> str:
        """The marker beside a shard, given the shard's key."""
        return f"{shard_key.rpartition('.')[0]}.json"

    @staticmethod
    def patch_set_manifest(name: str) -> str:
        """What the set holds: `PatchSetManifest`, published last, once every shard is there."""
        return f"patches/{name}/manifest.json"

    @staticmethod
    def variant(name: str) -> str:
        """Folder of one run of a study."""
        return f"variants/{name}"

    @staticmethod
    def quarantined(digest: str) -> str:
        """One position that crashed or hung a decoder: `QuarantinedPatch`."""
        return f"quarantine/{digest}.json"

    @staticmethod
    def failure(step: str) -> str:
        """Last error of a step that has not succeeded since: `StepFailure`."""
        return f"failures/{step}.json"

    @staticmethod
    def log(source: str, part: str) -> str:
        """JSON lines of one writer: `source` a step of the pipeline, `part` sorts by time."""
        return f"logs/{source}/{part}.jsonl"

    @staticmethod
    def logs(source: str) -> str:
        """All that one step has logged."""
        return f"logs/{source}/"


class RegistryLayout:
    """Keys under a registry URI: one object a model name."""

    MODELS = "models/"
    _NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

    @classmethod
    def is_name(cls, name: str) -> bool:
        """Whether `name` may be a model's: lower case, digits and dashes, at most 63."""
        return cls._NAME.fullmatch(name) is not None

    @staticmethod
    def entry(name: str) -> str:
        """Every version of a model, the current one, and each move: `RegistryEntry`."""
        return f"models/{name}.json"

    @classmethod
    def name_of(cls, key: str) -> str:
        """The model whose entry lies at `key`; empty where it is none."""
        name = key.removeprefix(cls.MODELS).removesuffix(".json")
        return name if cls.is_name(name) and key == cls.entry(name) else ""


def record_key(model: str) -> str:
    """`model` as one path segment; names that differ stay different."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", model)
    return safe if safe == model else f"{safe}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def model_name(step: int) -> str:
    """The name under which the teacher of training step `step` is exported and judged."""
    return f"step-{step:08d}"


def step_of(model: str) -> int | None:
    """The training step of `step-00000100`; 0 for random-init; None for any other model."""
    if model == RANDOM_INIT:
        return 0
    prefix, _, digits = model.partition("-")
    return int(digits) if prefix == "step" and digits.isdigit() else None
