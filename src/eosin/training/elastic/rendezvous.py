"""The rendezvous store of elastic agents, as a process: `python -m eosin.training.elastic.rendezvous`.

It holds no state worth keeping: when it dies every agent exits, all come back, and training goes on
from its last checkpoint.
"""

import argparse
import signal
import sys
import threading
from datetime import timedelta


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m eosin.training.elastic.rendezvous", description=__doc__)
    parser.add_argument("--port", type=int, default=29400)
    parser.add_argument("--host", default="0.0.0.0")  # agents of other nodes must reach it
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch exports it at run time

    try:
        store = TCPStore(
            options.host, options.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
        )
    except RuntimeError as error:
        print(f"rendezvous: port {options.port} cannot be served: {error}", file=sys.stderr)
        return 75
    print(f"rendezvous: serving on {options.host}:{store.port}", file=sys.stderr, flush=True)
    while not stop.wait(1.0):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
