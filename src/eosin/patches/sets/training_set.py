"""A patch set as what a run trains on: whether it fits the run, before a GPU waits for it."""

from __future__ import annotations

from pathlib import Path

from eosin.config.patches import PatchesConfig
from eosin.errors import UserError
from eosin.index.snapshot import Snapshot
from eosin.patches.sampling.eligible import find_eligible
from eosin.patches.sets.patchset import read_manifest
from eosin.patches.sets.patchset_source import PatchSetSource
from eosin.records import PatchSetManifest

_NAMED_AT_MOST = 5


def open_training_set(config: PatchesConfig, snapshot: Snapshot, seed: int) -> PatchSetSource:
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
