"""Pictures of slides, one a slide: thumbnail, outline of the tissue, and a sample of the patches drawn."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eosin.config.patches import PatchesConfig
from eosin.errors import UserError
from eosin.index.listing import is_included
from eosin.index.rows import SlideRow
from eosin.index.sheet import outlined_thumbnail, tissue_share
from eosin.index.snapshot import open_snapshot
from eosin.patches.geometry import extent_px
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.eligible import why_excluded
from eosin.patches.sampling.sampler import Sampler
from eosin.storage import open_store

_AT_ONCE = 16
_SIDE_PX = 512
_LINE_PX, _FONT_PX, _MARGIN_PX = 14, 11, 4
_INK, _BOX = (40, 40, 40), (30, 80, 220)
_QUALITY = 88


@dataclass(frozen=True)
class PicturesResult:
    """What was written, and where."""

    uri: str
    num_pictures: int
    num_without: int
    """Slides that match and have no thumbnail."""


def write_slide_pictures(
    index_uri: str,
    out_uri: str,
    config: PatchesConfig,
    slides: Sequence[str] = ("*",),
    *,
    num_patches: int = 16,
) -> PicturesResult:
    """Publish `SLIDE.jpg` under `out_uri` for the slides of the newest snapshot whose keys match `slides`.

    The green line is the edge of the tissue mask, a blue box a patch as training with `config` draws it; two
    lines below say slide, status, tissue and patches, or why there is none. The same index gives the same
    pictures. Raises `UserError` where there is no index, or no slide that matches.
    """
    snapshot, store = open_snapshot(index_uri), open_store(out_uri)
    names = snapshot.rows.column("slide")
    chosen = [i for i, name in enumerate(names) if is_included(name, slides)]
    if not chosen:
        raise UserError(
            f"no slide of {index_uri} matches {', '.join(slides)}", hint="see `eosin index inspect`"
        )
    sampler: Sampler | None = None
    with suppress(UserError):  # no slide serves, as each picture says
        sampler = Sampler(snapshot, config, seed=0)
    drawn_from = set(sampler.slides.tolist()) if sampler else set()

    def write(number: int) -> bool:
        row = snapshot.rows.alone(number)
        pixels = outlined_thumbnail(snapshot, row, _SIDE_PX)
        if pixels is None:
            return False
        drawn = sampler.patches_of(number, num_patches) if sampler and number in drawn_from else []
        store.put(f"{row.slide}.jpg", _drawn(Image.fromarray(pixels), row, drawn, config))
        return True

    with ThreadPoolExecutor(_AT_ONCE, "pictures") as threads:
        made = sum(threads.map(write, chosen))
    return PicturesResult(out_uri, made, len(chosen) - made)


def _drawn(
    picture: Image.Image, row: SlideRow, drawn: Sequence[PatchRequest], config: PatchesConfig
) -> bytes:
    finest = row.header.levels[0]
    larger = max(1, _SIDE_PX // max(picture.size))  # of a small slide the thumbnail is small
    picture = picture.resize((larger * picture.width, larger * picture.height), Image.Resampling.NEAREST)
    scale = np.array([picture.width / finest.width_px, picture.height / finest.height_px])
    page = Image.new(
        "RGB", (max(picture.width, _SIDE_PX), picture.height + 2 * _LINE_PX + _MARGIN_PX), "white"
    )
    page.paste(picture)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(_FONT_PX)
    for each in drawn:
        corner = np.array([each.x_px, each.y_px])
        low, high = corner * scale, (corner + extent_px(row.header, config.patch_px, each.mpp)) * scale
        pen.rectangle((*low.tolist(), *np.maximum(high, low + 2).tolist()), outline=_BOX, width=2)
    share = tissue_share(row)
    tissue = f"{row.tissue_mm2:.3g} sq mm of tissue" + (f", {share:.0%}" if share is not None else "")
    mpps = ", ".join(f"{mpp:g}" for mpp in config.shown_mpp)
    told = f"{len(drawn)} patches of {config.patch_px} px at {mpps} mpp"
    mask = " · mask from contours" if row.contours else ""
    for number, text in enumerate(
        (row.slide, f"{tissue}{mask} · {told if drawn else why_excluded(row, config)}")
    ):
        pen.text((_MARGIN_PX, picture.height + number * _LINE_PX + 1), text, fill=_INK, font=font)
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()
