"""Records of a run and its place in Kubeflow: pins, training, lease, teachers, failures, study."""

from typing import Any

from eosin.records.base import Record, RecordPart


class IndexPin(Record):
    """`index.json` of a run: the snapshot it reads, for good."""

    index_uri: str
    """The index."""
    snapshot_id: str
    """Its snapshot."""


class ScanPin(Record):
    """`scan.json` of a run: the scan that makes its snapshot, so that all steps work from one listing."""

    scan_id: str
    """Folder under the index's `scans/` with the listing."""


class TrainingDone(Record):
    """`training.json` of a run: training ended, these teachers are exported."""

    num_steps: int
    """Steps taken."""
    models: tuple[str, ...]
    """Names of the exported teachers, by step."""
    snapshot_id: str
    """The snapshot of the index that it was trained on."""
    config_digest: str
    """Of what decides the training in config.yaml."""
    wall_s: float = 0.0
    """From the start of the last world to the end, seconds."""
    final_loss: float | None = None
    """Loss of the last step."""


class TeacherCard(Record):
    """`model.json`: all that plain timm needs to build the model, and where it came from."""

    name: str
    """step-00000100, or random-init."""
    step: int | None
    """Training step; None: not trained here."""
    arch: str
    """Name of the architecture in timm."""
    arch_args: dict[str, Any]
    """Keyword arguments for `timm.create_model(arch, num_classes=0, **arch_args)`."""
    img_px: int
    """Side of the image the position embedding was made for."""
    num_features: int
    """Length of the features of an image."""
    mean: tuple[float, float, float]
    """Subtracted from red, green and blue (0 to 1) of an image."""
    std: tuple[float, float, float]
    """Red, green and blue are divided by it afterwards."""
    mpp: tuple[float, ...]
    """Magnifications it was trained at, µm a pixel; both ends, where it was a range."""
    weights_sha256: str
    """Of model.safetensors."""
    config_digest: str = ""
    """Of what decides the training in the run's config.yaml."""
    snapshot_id: str = ""
    """The snapshot of the index that it was trained on."""
    attribution: tuple[str, ...] = ()
    """Whose the slides are that it was trained on: collections, licences and DOIs."""
    eosin_version: str = ""
    """Of the eosin that exported it."""


class RetrainBase(Record):
    """`retrain.json` of a run: the registry's current model when it was planned; `version` None: none yet."""

    registry: str
    """URI of the registry."""
    name: str
    """Of the model in it."""
    version: int | None = None
    """Number of the version; None: there was none yet."""
    run: str = ""
    """URI of the run that trained it."""
    teacher: str = ""
    """URI of the folder of its export; training begins with its weights."""
    index_uri: str = ""
    """The index it was trained on."""
    snapshot_id: str = ""
    """What it was trained on; slides beyond it are new."""


class QuarantinedPatch(Record):
    """One object under the run's `quarantine/`; what a run draws depends on which there are."""

    slide: str
    """Key of the slide."""
    slide_digest: str
    """Of the index row: a slide that was replaced is another one."""
    x_px: int
    """Left edge in the level-0 frame, pixels."""
    y_px: int
    """Top edge in the level-0 frame, pixels."""
    mpp: float
    """Magnification that was asked for, µm a pixel."""
    decoder: str
    """cucim, nvimgcodec or openslide."""
    reason: str
    """decoder-crash or decoder-hang."""
    signal: str
    """What ended the decoder's process: SIGSEGV, exit code 3, no answer in 60 s."""
    message: str
    """What the decoder said last."""


class Variant(RecordPart):
    """One run of a study."""

    name: str
    """Of its folder, and of its point in the report."""
    value: Any
    """Of the key; null stands for no limit."""
    run: str
    """URI of the run."""
    untrained: str
    """The model that its training begins with: random-init, timm:NAME or a teacher's folder."""


class Study(Record):
    """`study.json`, beside the configuration that all variants share."""

    key: str
    """The configuration key that differs, `section.key`."""
    variants: tuple[Variant, ...]
    """In the order of their values."""
    heldout: str
    """URI of the patch set on which all of them are judged without labels."""


class LeaseRecord(Record):
    """`lease.json` of a run: the world that started last."""

    token: str
    """Random; whoever wrote it last may publish."""
    holder: str
    """Host and process of its rank 0."""
    taken_at: str
    """ISO 8601, UTC."""


class KubeflowRun(Record):
    """Published where the run is submitted, and by its first steps; the newest submission replaces it."""

    namespace: str
    """Of its Workflow and pods; empty: not known where it was submitted."""
    run_id: str = ""
    """By which Kubeflow Pipelines knows it."""
    workflow: str = ""
    """Name of its Workflow, once it has one."""
    pipeline: str = ""
    """Name of the pipeline: pretrain, retrain, …"""
    host: str = ""
    """Address of the API it was submitted to."""


class StepFailure(Record):
    """Published when a step ends with an error; deleted when the same step succeeds."""

    step: str
    """Such as train, index-shard-00003 or evaluate-step-00000100-camelyon."""
    message: str
    """What is wrong."""
    hint: str = ""
    """What to do about it."""
    kind: str = ""
    """UserError, TransientError, PermanentError, or the name of what was not expected."""
    exit_code: int
    """0 where the step's process ended without a word."""
    time: str
    """RFC 3339, UTC."""
    attempt: int = 1
    """Counts the failures of this step in this run."""
    pod: str = ""
    """Name of the pod; empty outside a cluster."""
