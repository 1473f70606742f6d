"""Synthetic H&E slides with known tissue classes, for the demo and the tests.

`write_slide` writes one slide, `write_dataset` a folder of slides with their ground truth and a
labelled patch set. Both are pure functions of their config and seed.
"""

from eosin.demo.synthetic.config import CLASS_NAMES, COMPRESSIONS, SyntheticConfig
from eosin.demo.synthetic.dataset import DatasetTruth, SlideRecord, slide_records, write_dataset
from eosin.demo.synthetic.plan import AnnotatedRegion, SlideTruth, plan_slide
from eosin.demo.synthetic.slide import write_slide

__all__ = [
    "CLASS_NAMES",
    "COMPRESSIONS",
    "AnnotatedRegion",
    "DatasetTruth",
    "SlideRecord",
    "SlideTruth",
    "SyntheticConfig",
    "plan_slide",
    "slide_records",
    "write_dataset",
    "write_slide",
]
