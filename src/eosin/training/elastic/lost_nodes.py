"""Noticing a node that has gone without a word: switched off, or cut off from the network.

torchrun strikes a node that sends no keep-alive from its list, but restarts its workers only when one of
them fails or a new node waits. Whoever was killed closes its connections and is noticed at once; who was
switched off does not, and its peers would sit in a collective until the process group's timeout. So a world
from which a node was struck counts as one that somebody waits to join.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

_SIZE = "_eosin_num_nodes"


def notice_lost_nodes() -> None:
    """From now on agents of this process leave a world that has lost a node. Once a process is enough.

    It looks at a private attribute of torch's rendezvous; where that is gone, nothing changes.
    """
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler as Handler

    join, count = Handler.next_rendezvous, Handler.num_nodes_waiting

    @functools.wraps(join)
    def next_rendezvous(self: Any) -> Any:
        info = join(self)
        setattr(self, _SIZE, info.world_size)
        return info

    @functools.wraps(count)
    def num_nodes_waiting(self: Any) -> int:
        return count(self) or _num_lost(self)

    Handler.next_rendezvous = next_rendezvous  # type: ignore[method-assign]
    Handler.num_nodes_waiting = num_nodes_waiting  # type: ignore[method-assign]


def _num_lost(handler: Any) -> int:
    """Nodes of the present world that were struck from the list."""
    try:
        present = len(handler._state_holder.state.participants)
    except AttributeError:
        return 0
    lost = max(0, getattr(handler, _SIZE, 0) - present)
    if lost:
        print(f"agent: {lost} of {getattr(handler, _SIZE)} nodes sent no keep-alive; meeting again without",
              file=sys.stderr, flush=True)  # fmt: skip
    return lost
