"""Records: everything that one step publishes as JSON and another reads."""

from eosin.records.base import load_record as load_record
from eosin.records.base import publish_once as publish_once
from eosin.records.base import update_object as update_object
from eosin.records.base import update_record as update_record
from eosin.records.index import ScanListing as ScanListing
from eosin.records.index import SnapshotManifest as SnapshotManifest
from eosin.records.metric import MetricRecord as MetricRecord
from eosin.records.metric import MetricValue as MetricValue
from eosin.records.patchset import PatchSetManifest as PatchSetManifest
from eosin.records.patchset import PatchSetShard as PatchSetShard
from eosin.records.patchset import RejectedPatch as RejectedPatch
from eosin.records.registry import RegisteredModel as RegisteredModel
from eosin.records.registry import RegistryEntry as RegistryEntry
from eosin.records.registry import RegistryMove as RegistryMove
from eosin.records.run import IndexPin as IndexPin
from eosin.records.run import KubeflowRun as KubeflowRun
from eosin.records.run import LeaseRecord as LeaseRecord
from eosin.records.run import QuarantinedPatch as QuarantinedPatch
from eosin.records.run import RetrainBase as RetrainBase
from eosin.records.run import ScanPin as ScanPin
from eosin.records.run import StepFailure as StepFailure
from eosin.records.run import Study as Study
from eosin.records.run import TeacherCard as TeacherCard
from eosin.records.run import TrainingDone as TrainingDone
from eosin.records.run import Variant as Variant
