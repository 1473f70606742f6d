"""The scan plan: the listing, the overrides and the settings that together name a scan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.index.listing import Unit, list_units, listing_digest, require_slide
from eosin.index.overrides import Override, load_overrides
from eosin.index.read_slide import INDEXER_VERSION
from eosin.index.tissue_model import load_model_bytes, model_digest
from eosin.slides.model import SlideObject
from eosin.storage import ObjectInfo, Store, open_store


@dataclass(frozen=True)
class ScanPlan:
    """One logical scan: shards of it meet because they derive the same id from the same bucket."""

    scan_id: str
    slides: Store
    index: Store
    units: Sequence[Unit]
    num_pictures: int
    """Objects that are pictures by name, and no slides."""
    tissue_model: bytes
    """The ONNX model of `index.tissue.onnx`; empty where none is named."""
    overrides: Mapping[str, Override]
    unknown_overrides: Sequence[str]
    """Names in the overrides that name no slide, or several."""

    def override(self, objects: Sequence[ObjectInfo | SlideObject]) -> Override | None:
        """What the overrides say of the slide made of `objects`."""
        return next((self.overrides[each.key] for each in objects if each.key in self.overrides), None)


def plan_scan(config: RunConfig) -> ScanPlan:
    """List the slides once and read the overrides. Raises `UserError` for what is not configured,
    and where there is no slide."""
    if not config.slides.uri:
        raise UserError("no slides named", hint="give their folder: slides.uri, or --slides")
    if not config.index.uri:
        raise UserError("no place for the index named", hint="give it: index.uri, or --index")
    slides, index = open_store(config.slides.uri), open_store(config.index.uri)
    units, num_pictures = list_units(slides, config.slides.include)
    if not units:
        require_slide(slides, config.slides.include)
    overrides = load_overrides(config.slides.overrides)
    found, unknown = overrides.matched(units)
    model = load_model_bytes(config.index.tissue.onnx)
    identity = [
        slides.uri, listing_digest(units), overrides.digest, list(config.slides.include),
        config.index.tissue.model_dump(mode="json"), config.index.max_mpp, INDEXER_VERSION,
        model_digest(model),
    ]  # fmt: skip
    scan_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return ScanPlan(scan_id, slides, index, units, num_pictures, model, found, unknown)
