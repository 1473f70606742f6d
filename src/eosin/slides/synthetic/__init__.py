"""Synthetic H&E slides with known tissue classes, for the demo and the tests.

`write_slide` writes one slide, `write_dataset` a folder of slides with their ground truth and a
labelled patch set. Both are pure functions of their config and seed.
"""

from eosin.slides.synthetic.config import CLASS_NAMES, COMPRESSIONS, SyntheticConfig
from eosin.slides.synthetic.dataset import DatasetTruth, SlideRecord, slide_records, write_dataset
from eosin.slides.synthetic.plan import Region, SlideTruth, plan_slide
from eosin.slides.synthetic.slide import write_slide

__all__ = [
    "CLASS_NAMES",
    "COMPRESSIONS",
    "DatasetTruth",
    "Region",
    "SlideRecord",
    "SlideTruth",
    "SyntheticConfig",
    "plan_slide",
    "slide_records",
    "write_dataset",
    "write_slide",
]
