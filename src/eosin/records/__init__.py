"""Everything one step publishes as JSON and another reads."""

from eosin.records.bucket import load_record, publish_once, update_record
from eosin.records.metric import MetricRecord, MetricValue
from eosin.records.patchset import PatchSetManifest, PatchSetShard, RejectedPatch
from eosin.records.registry import RegisteredModel, RegistryEntry, RegistryMove
from eosin.records.retrain import RetrainBase
from eosin.records.snapshot import IndexPin, SnapshotManifest, TrainingDone
from eosin.records.study import Study, Variant
from eosin.records.teacher import TeacherCard

__all__ = [
    "IndexPin",
    "MetricRecord",
    "MetricValue",
    "PatchSetManifest",
    "PatchSetShard",
    "RegisteredModel",
    "RegistryEntry",
    "RegistryMove",
    "RejectedPatch",
    "RetrainBase",
    "SnapshotManifest",
    "Study",
    "TeacherCard",
    "TrainingDone",
    "Variant",
    "load_record",
    "publish_once",
    "update_record",
]
