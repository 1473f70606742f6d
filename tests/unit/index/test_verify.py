"""Which slides another reader is asked about, and what is held of them meanwhile."""

import numpy as np

from eosin.index.rows import SlideRow, decode_table, encode_rows
from eosin.index.tissue_mask import TissueMask
from eosin.index.verify import Smallest, chosen_to_verify
from eosin.slides.model import Level, SlideHeader, SlideObject


def row(number: int) -> SlideRow:
    """One of equal kind, the later the smaller, with a mask."""
    level = Level(1000, 900, 1.0, 240, 240, "jpeg", "rgb", 0, b"", 1)
    stored = SlideObject(f"{number:02d}.svs", "etag", 10_000 - number)
    mask = TissueMask.from_array(np.ones((256, 256), bool), 4.0, 4.0)
    header = SlideHeader((stored,), "aperio", "svs", (level,), 0.25, 0.25)
    return SlideRow(stored.key, "ok", "", header, tissue=mask)


def test_the_smallest_slides_are_held_without_the_masks_of_others() -> None:
    table = decode_table(encode_rows([row(number) for number in range(64)]), "rows").combine_chunks()
    smallest = Smallest()
    smallest.look(table)
    ((size_bytes, slide, held),) = smallest.found.values()
    assert (size_bytes, slide) == (9_937, "63.svs")
    assert [each.slide for each in chosen_to_verify(smallest)] == ["63.svs"]
    assert held.get_total_buffer_size() < table.get_total_buffer_size() / 16
