"""Patches of a snapshot, but for those that are quarantined."""

from __future__ import annotations

from collections.abc import Sequence

from eosin.closing import Closing
from eosin.patches.decoding.quarantine import DecoderDied, Quarantine
from eosin.patches.reading.reader import PatchReader, Pixels
from eosin.patches.request import PatchRequest
from eosin.slides.errors import SlideError


class GuardedReader(Closing):
    """As `PatchReader`; a patch that kills its decoder joins the quarantine, and is not read again."""

    def __init__(self, reader: PatchReader, quarantine: Quarantine) -> None:
        self._reader = reader
        self._quarantine = quarantine

    def read(self, requests: Sequence[PatchRequest]) -> list[Pixels | SlideError]:
        """Each patch as [patch_px, patch_px, 3] RGB, or why its slide cannot give it."""
        found: list[Pixels | SlideError | None] = [self._quarantine.error_of(each) for each in requests]
        wanted = [place for place, error in enumerate(found) if error is None]
        for place, patch in zip(wanted, self._reader.read([requests[i] for i in wanted]), strict=True):
            self._note(requests[place], patch)
            found[place] = patch
        return [patch for patch in found if patch is not None]

    def read_into(self, requests: Sequence[PatchRequest], patches: Pixels) -> list[SlideError | None]:
        """As `read`, each patch written into its row of `patches`; what is returned says why one is not."""
        if all(self._quarantine.error_of(request) is None for request in requests):
            errors = self._reader.read_into(requests, patches)
            for request, error in zip(requests, errors, strict=True):
                self._note(request, error)
            return errors
        found = self.read(requests)
        for place, patch in enumerate(found):
            if not isinstance(patch, SlideError):
                patches[place] = patch
        return [patch if isinstance(patch, SlideError) else None for patch in found]

    def _note(self, request: PatchRequest, outcome: Pixels | SlideError | None) -> None:
        if isinstance(outcome, DecoderDied):
            self._quarantine.add(request, outcome)

    def empty(self, num: int) -> Pixels:
        """Room for `num` patches, where the reader puts them."""
        return self._reader.empty(num)

    def close(self) -> None:
        """End the decoders' processes."""
        self._reader.close()
