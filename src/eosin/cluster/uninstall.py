"""Guard of `helm uninstall`: refuses while a training runs, since its pods need the chart's accounts."""

from __future__ import annotations

import sys

from eosin.cluster import names
from eosin.cluster.api import Cluster, Missing, connect
from eosin.cluster.resources import is_being_deleted, run_of
from eosin.cluster.training import terminal_state
from eosin.errors import EosinError, describe, exit_code_of


def live_runs(cluster: Cluster) -> list[str]:
    """URIs of the runs that train in the namespace, in order. Raises `UserError` where it may not look."""
    try:
        found = cluster.list_objects(names.JOBSET, f"{names.MANAGED_BY}=eosin")
    except Missing:  # JobSet was removed before
        return []
    return sorted(run_of(job) for job in found if not terminal_state(job) and not is_being_deleted(job))


def main() -> int:
    """0 where nothing trains; else 1, with what to do on standard error."""
    try:
        runs = live_runs(connect())
    except EosinError as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return exit_code_of(error)
    for run in runs:
        print(f"error: {run} trains with the accounts of this release: eosin cancel {run}", file=sys.stderr)
    if runs:
        print("to uninstall all the same: helm uninstall --no-hooks", file=sys.stderr)
    return 1 if runs else 0


if __name__ == "__main__":
    sys.exit(main())
