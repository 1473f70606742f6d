"""Every public dataset by the name of its layout."""

from __future__ import annotations

from eosin.config.presets import ImageLayout, MaskLayout
from eosin.evaluation.dataset import Dataset
from eosin.evaluation.datasets.bach import BACH
from eosin.evaluation.datasets.bcss import BCSS
from eosin.evaluation.datasets.bracs import BRACS
from eosin.evaluation.datasets.breakhis import BREAKHIS
from eosin.evaluation.datasets.consep import CONSEP
from eosin.evaluation.datasets.crc import CRC
from eosin.evaluation.datasets.gleason import GLEASON
from eosin.evaluation.datasets.mhist import MHIST
from eosin.evaluation.datasets.monusac import MONUSAC
from eosin.evaluation.datasets.monuseg import MONUSEG
from eosin.evaluation.datasets.pcam import PCAM
from eosin.evaluation.datasets.published import Published
from eosin.evaluation.datasets.unitopatho import UNITOPATHO
from eosin.evaluation.mask_folder import MaskedDataset

IMAGES: dict[ImageLayout, Published[Dataset]] = {
    "bach": BACH,
    "bracs": BRACS,
    "breakhis": BREAKHIS,
    "crc": CRC,
    "gleason": GLEASON,
    "mhist": MHIST,
    "pcam": PCAM,
    "unitopatho": UNITOPATHO,
}

MASKS: dict[MaskLayout, Published[MaskedDataset]] = {
    "bcss": BCSS,
    "consep": CONSEP,
    "monusac": MONUSAC,
    "monuseg": MONUSEG,
}
