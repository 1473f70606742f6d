"""Rows of a patch set from pixels."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from eosin.config.patches import EncodingConfig
from eosin.errors import PermanentError
from eosin.index.snapshot import Snapshot
from eosin.patches.geometry import extent_px
from eosin.patches.request import PatchRequest
from eosin.records import RejectedPatch
from eosin.records.patchset_shard import PatchRow
from eosin.slides.errors import SlideError

_PNG_LEVEL = 3


def encode_image(pixels: npt.NDArray[np.uint8], config: EncodingConfig) -> bytes:
    """PNG or JPEG bytes of [h, w, 3] RGB pixels."""
    jpeg = config.encoding == "jpeg"
    quality = [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
    options = quality if jpeg else [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL]
    done, data = cv2.imencode(".jpg" if jpeg else ".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise PermanentError(f"a patch of shape {pixels.shape} cannot be encoded as {config.encoding}")
    return bytes(data)


def encode_row(
    snapshot: Snapshot,
    request: PatchRequest,
    pixels: npt.NDArray[np.uint8],
    patch_px: int,
    encoding: EncodingConfig,
    split: str = "",
) -> PatchRow:
    """The row of a patch set for `pixels` [patch_px, patch_px, 3]."""
    row = snapshot.rows[request.slide]
    assert row.tissue is not None
    width_px, height_px = extent_px(row.header, patch_px, request.mpp)
    foreground = row.tissue.fraction(request.x_px, request.y_px, width_px, height_px)
    return PatchRow(
        image=encode_image(pixels, encoding),
        slide=row.slide,
        x_px=request.x_px,
        y_px=request.y_px,
        mpp=request.mpp,
        foreground=float(np.float32(foreground)),  # as Parquet keeps it, so that a tar says the same
        patient=row.patient,
        split=split,
    )


def rejected_patch(snapshot: Snapshot, request: PatchRequest, error: SlideError) -> RejectedPatch:
    """The record of a patch that could not be read."""
    slide = snapshot.rows[request.slide].slide
    return RejectedPatch(slide=slide, x_px=request.x_px, y_px=request.y_px, mpp=request.mpp,
                         reason=f"{error.reason}: {error.message}")  # fmt: skip
