"""Records: everything that one step publishes as JSON and another reads."""

from eosin.records.bucket import load_record, publish_once, update_record
from eosin.records.index import ScanListing, SnapshotManifest
from eosin.records.kubeflow_run import KubeflowRun
from eosin.records.lease import LeaseRecord
from eosin.records.metric import MetricRecord, MetricValue
from eosin.records.patchset import PatchSetManifest, PatchSetShard, RejectedPatch
from eosin.records.registry import RegisteredModel, RegistryEntry, RegistryMove
from eosin.records.run import (
    IndexPin,
    QuarantinedPatch,
    RetrainBase,
    ScanPin,
    Study,
    TeacherCard,
    TrainingDone,
    Variant,
)
from eosin.records.step_failure import StepFailure

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
