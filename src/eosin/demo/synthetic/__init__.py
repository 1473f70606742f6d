"""Synthetic H&E slides with known tissue classes, for the demo and the tests."""

from eosin.demo.synthetic.config import CLASS_NAMES, SyntheticConfig
from eosin.demo.synthetic.dataset import slide_records, write_dataset
from eosin.demo.synthetic.slide import publish_slide

__all__ = ["CLASS_NAMES", "SyntheticConfig", "publish_slide", "slide_records", "write_dataset"]
