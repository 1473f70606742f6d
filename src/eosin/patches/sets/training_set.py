"""Training from a published patch set: the source of its patches, and whether it fits the run."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eosin.config.patches import PatchesConfig
from eosin.errors import PermanentError, UserError
from eosin.index.snapshot import Snapshot
from eosin.patches.request import PatchBatch, PatchRequest
from eosin.patches.sampling.counter_rng import uniforms
from eosin.patches.sampling.eligible import find_eligible
from eosin.patches.sets.patchset import read_manifest, read_shard
from eosin.records import PatchSetManifest
from eosin.records.patchset_shard import PatchRow
from eosin.storage import open_store

_NAMED_AT_MOST = 5


def open_training_set(config: PatchesConfig, snapshot: Snapshot, seed: int) -> "PatchSetSource":
    """The patches of `config.source`, copied under `config.stage_dir` where one is given.

    Raises as `check_training_set`, and `PermanentError` naming a shard that is damaged.
    """
    check_training_set(config, snapshot)
    directory = Path(config.stage_dir) if config.stage_dir else None
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    return PatchSetSource(config.source, seed=seed, patch_px=config.patch_px, directory=directory)


def check_training_set(config: PatchesConfig, snapshot: Snapshot) -> PatchSetManifest:
    """The manifest of `config.source`.

    Raises `UserError` where no whole set is there, its patches have another side or other magnifications
    than the run says, or some come from slides that the run holds out.
    """
    manifest = read_manifest(config.source)
    if manifest.patch_px != config.patch_px:
        raise UserError(
            f"the patches of {config.source} are {manifest.patch_px} px wide, not {config.patch_px}",
            hint=f"set patches.patch_px={manifest.patch_px}",
        )
    if set(manifest.mpp) != set(config.shown_mpp):
        raise UserError(
            f"the patches of {config.source} have {_listed(manifest.mpp)} mpp; the run says that its teacher "
            f"sees {_listed(config.shown_mpp)}",
            hint=f"set patches.mpp=[{_listed(manifest.mpp)}]",
        )
    shared = sorted(set(manifest.slides) & _held_out(config, snapshot))
    if shared:
        raise UserError(
            f"{len(shared)} of the {len(manifest.slides)} slides of {config.source} are held out by the run: "
            + ", ".join(shared[:_NAMED_AT_MOST]),
            hint="decode the set with `split: train`, or set patches.heldout.fraction=0",
        )
    return manifest


def _held_out(config: PatchesConfig, snapshot: Snapshot) -> set[str]:
    try:
        rows = find_eligible(snapshot, config, "heldout").rows
    except UserError:  # nothing can be held out, so nothing of it can be trained on
        return set()
    return {snapshot.rows[int(number)].slide for number in rows}


def _listed(mpps: tuple[float, ...]) -> str:
    return ", ".join(f"{mpp:g}" for mpp in mpps)


class PatchSetSource:
    """A `PatchSource` over a patch set: sample i of step t is a uniform draw by (seed, t, i) alone.

    The set is brought to a local folder once, its digests checked, and mapped from there: memory does
    not grow with it. A request's `slide` counts the set's slides, in the manifest's order.
    """

    def __init__(self, uri: str, *, seed: int, patch_px: int, directory: str | Path | None = None) -> None:
        """`directory`: where the local copy is made (None: the system's temporary folder).

        Raises `UserError` where no patch set is there, or its patches are not `patch_px` wide;
        `PermanentError` naming a shard that is damaged.
        """
        self.uri = uri
        self.seed = seed
        self.patch_px = patch_px
        store = open_store(uri)
        self.manifest = read_manifest(uri, store=store)
        if self.manifest.patch_px != patch_px:
            raise UserError(
                f"the patches of {uri} are {self.manifest.patch_px} px wide, not {patch_px}",
                hint=f"set patches.patch_px={self.manifest.patch_px}",
            )
        if not self.manifest.num_patches:
            raise UserError(f"patch set {uri} is empty")
        self._slides = {slide: number for number, slide in enumerate(self.manifest.slides)}
        self._folder = tempfile.TemporaryDirectory(prefix="eosin-patch-set-", dir=directory)
        self._tables = [
            _mapped(read_shard(store, shard), Path(self._folder.name, f"{number}.arrow"))
            for number, shard in enumerate(self.manifest.shards)
            if shard.num_patches
        ]
        self._ends = np.cumsum([table.num_rows for table in self._tables])

    def batches(self, wanted: Iterable[tuple[int, Sequence[int]]]) -> Iterator[PatchBatch]:
        """One batch for each (step, sample indices), in order."""
        for step, indices in wanted:
            rows = self._rows(step, indices)
            pixels = np.empty((len(rows), self.patch_px, self.patch_px, 3), np.uint8)
            for place, row in enumerate(rows):
                pixels[place] = self._decode(row)
            requests = (
                PatchRequest(step, index, self._slides[row.slide], row.x_px, row.y_px, row.mpp)
                for index, row in zip(indices, rows, strict=True)
            )
            yield PatchBatch(pixels, tuple(requests))

    def slide_name(self, slide: int) -> str:
        """The key of a request's slide."""
        return self.manifest.slides[slide]

    def close(self) -> None:
        """Delete the local copy."""
        self._tables = []
        self._folder.cleanup()

    def _rows(self, step: int, indices: Sequence[int]) -> list[PatchRow]:
        drawn = uniforms(self.seed, "patch-set", step, indices, 1)[:, 0]
        return [self._row(int(place)) for place in np.floor(drawn * self._ends[-1])]

    def _row(self, place: int) -> PatchRow:
        number = int(np.searchsorted(self._ends, place, side="right"))
        table = self._tables[number]
        (row,) = table.slice(place - int(self._ends[number]) + table.num_rows, 1).to_pylist()
        return PatchRow(**row)

    def _decode(self, row: PatchRow) -> npt.NDArray[np.uint8]:
        decoded = cv2.imdecode(np.frombuffer(row.image, np.uint8), cv2.IMREAD_COLOR)
        if decoded is None or decoded.shape != (self.patch_px, self.patch_px, 3):
            raise PermanentError(
                f"the patch of {row.slide} at {row.x_px}, {row.y_px} in {self.uri} is no image of "
                f"{self.patch_px} × {self.patch_px} px"
            )
        pixels: npt.NDArray[np.uint8] = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
        return pixels


def _mapped(rows: Sequence[PatchRow], path: Path) -> pa.Table:
    """`rows` as a table that lies in a file and is read page by page as it is used."""
    table = pa.Table.from_pylist([asdict(row) for row in rows])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
