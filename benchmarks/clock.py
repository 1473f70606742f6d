"""Where the time of a step goes, by the device's own clock: nothing waits for it."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Seconds by part. On a GPU from events in its queue, so that what it does meanwhile counts too;
    on a CPU in CPU seconds, which neighbours disturb less."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self._open: list[str] = []
        self.rounds: list[dict[str, float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what follows for `name`; an inner part is not counted for the outer one."""
        self._switch(name)
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()
            self._switch(self._open[-1] if self._open else "rest")

    @contextmanager
    def round(self) -> Iterator[None]:
        """One step, from its first operation to its last; its seconds by part are appended to `rounds`."""
        self._marks.clear()
        self._switch("rest")
        yield
        self._switch("end")
        if self._on_gpu:
            torch.cuda.synchronize()
        spent: dict[str, float] = defaultdict(float)
        for (name, began), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            spent[name] += began.elapsed_time(ended) / 1e3 if self._on_gpu else ended - began
        self.rounds.append(dict(spent))

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Count every call of `owner.method` for `part`."""
        function = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return function(*args, **kwargs)

        setattr(owner, method, timed)

    def _switch(self, name: str) -> None:
        now: Any = time.process_time()
        if self._on_gpu:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._marks.append((name, now))
