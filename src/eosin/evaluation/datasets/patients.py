"""Whose slide or patch it is, where its name says so."""

from __future__ import annotations

import re

_BARCODE = re.compile(r"(?<![A-Z0-9])(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?![A-Z0-9])")


def tcga_patient(name: str) -> str:
    """The TCGA participant in a file's name, as `TCGA-38-6178`; empty where there is none."""
    found = _BARCODE.findall(name)
    return found[-1] if found else ""
