"""Records: everything that one step publishes as JSON and another reads."""

from eosin.records.base import load_record, publish_once, update_record
from eosin.records.index import ScanListing, SnapshotManifest
from eosin.records.metric import MetricRecord, MetricValue
from eosin.records.patchset import PatchSetManifest, PatchSetShard, RejectedPatch
from eosin.records.registry import RegisteredModel, RegistryEntry, RegistryMove
from eosin.records.run import (
    IndexPin,
    KubeflowRun,
    LeaseRecord,
    QuarantinedPatch,
    RetrainBase,
    ScanPin,
    StepFailure,
    Study,
    TeacherCard,
    TrainingDone,
    Variant,
)

__all__ = [
    "IndexPin",
    "KubeflowRun",
    "LeaseRecord",
    "MetricRecord",
    "MetricValue",
    "PatchSetManifest",
    "PatchSetShard",
    "QuarantinedPatch",
    "RegisteredModel",
    "RegistryEntry",
    "RegistryMove",
    "RejectedPatch",
    "RetrainBase",
    "ScanListing",
    "ScanPin",
    "SnapshotManifest",
    "StepFailure",
    "Study",
    "TeacherCard",
    "TrainingDone",
    "Variant",
    "load_record",
    "publish_once",
    "update_record",
]
