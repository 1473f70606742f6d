"""Every public dataset by the name of its layout."""

from __future__ import annotations

from eosin.config.presets import ImageLayout, MaskLayout
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.datasets.mask_folder import MaskedDataset
from eosin.evaluation.datasets.public.bach import BACH
from eosin.evaluation.datasets.public.bcss import BCSS
from eosin.evaluation.datasets.public.bracs import BRACS
from eosin.evaluation.datasets.public.breakhis import BREAKHIS
from eosin.evaluation.datasets.public.consep import CONSEP
from eosin.evaluation.datasets.public.crc import CRC
from eosin.evaluation.datasets.public.gleason import GLEASON
from eosin.evaluation.datasets.public.mhist import MHIST
from eosin.evaluation.datasets.public.monusac import MONUSAC
from eosin.evaluation.datasets.public.monuseg import MONUSEG
from eosin.evaluation.datasets.public.pcam import PCAM
from eosin.evaluation.datasets.public.published import PublicDataset
from eosin.evaluation.datasets.public.unitopatho import UNITOPATHO

IMAGES: dict[ImageLayout, PublicDataset[Dataset]] = {
    "bach": BACH,
    "bracs": BRACS,
    "breakhis": BREAKHIS,
    "crc": CRC,
    "gleason": GLEASON,
    "mhist": MHIST,
    "pcam": PCAM,
    "unitopatho": UNITOPATHO,
}

MASKS: dict[MaskLayout, PublicDataset[MaskedDataset]] = {
    "bcss": BCSS,
    "consep": CONSEP,
    "monusac": MONUSAC,
    "monuseg": MONUSEG,
}
