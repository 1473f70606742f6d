"""The end of a world: agents part at once, and one that comes after that finds out why."""

from __future__ import annotations

import sys

from eosin.errors import EXIT_TRANSIENT, EosinError, describe


def part_when_done() -> None:
    """From now on agents of this process leave as soon as their own workers have ended well.

    torchrun's wait five minutes for each other, since one of them may host the store. Here it is a process of
    its own, and workers end well together: all wait until the last one has published. An agent that waited
    would hold its GPUs for one that has been started anew meanwhile and will never come.
    """
    from torch.distributed.elastic.agent.server.api import SimpleElasticAgent

    SimpleElasticAgent._exit_barrier = lambda self: None  # type: ignore[method-assign]


def is_closed_rendezvous(error: BaseException) -> bool:
    from torch.distributed.elastic.rendezvous import RendezvousClosedError

    return isinstance(error, RendezvousClosedError)


def exit_code_of_late(run_uri: str) -> int:
    """0 where training has ended, as for the others: a Job whose last pod failed would not have ended.

    75 where it has not, or where the store does not tell: the next try finds out.
    """
    try:
        ended = _has_ended(run_uri)
    except EosinError as error:
        print(f"agent: {describe(error)}", file=sys.stderr, flush=True)
        return EXIT_TRANSIENT
    if ended:
        print("agent: training has ended before this agent came", file=sys.stderr, flush=True)
        return 0
    print("agent: the others have parted before training ended", file=sys.stderr, flush=True)
    return EXIT_TRANSIENT


def _has_ended(run_uri: str) -> bool:
    from eosin.runs import load_run, load_training_done
    from eosin.storage import open_store

    store = open_store(run_uri)
    return load_training_done(store, load_run(run_uri, store=store)) is not None
