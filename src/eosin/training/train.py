"""Training of a run on this machine, as one call."""

from __future__ import annotations

import tempfile
from pathlib import Path

from eosin.errors import TransientError
from eosin.observability import RunLog
from eosin.process import sigterm_raises
from eosin.records import TrainingDone
from eosin.runs import load_pin, load_run, load_training_done
from eosin.storage import open_store
from eosin.training.check import check_training, local_memory_bytes
from eosin.training.checkpoints.reexport import export_missing
from eosin.training.elastic.launch import run_agents
from eosin.training.resume import forget

WORKER = "eosin.training.worker"


def train(run_uri: str, *, log: RunLog, worker: str = WORKER) -> TrainingDone:
    """Train the run to its last step on this machine, continuing from its newest checkpoint.

    Idempotent: where training has ended before, its record is returned at once, after teachers that have
    been deleted are exported again. `worker`: the module
    that each process runs. Raises `UserError` for a configuration that cannot be trained (before any
    process is started) or that a worker refused, `PermanentError` for a loss that is not finite or
    workers that fail again and again from the same step, `TransientError` where calling again may help.
    Interrupted (SIGINT, SIGTERM), the workers publish what they have and no process is left.
    """
    store = open_store(run_uri)
    config = load_run(run_uri, store=store)
    done = load_training_done(store, config)
    if done is not None:
        export_missing(store, config, done, log)
        forget(store)
        log.event("skipped", reason="training has ended before", num_steps=done.num_steps)
        return done
    load_pin(run_uri, store=store)
    log.event("plan", **check_training(config, memory_bytes=local_memory_bytes(config)))
    with tempfile.TemporaryDirectory(prefix="eosin-train-") as folder, sigterm_raises(KeyboardInterrupt):
        failed = run_agents(config, run_uri, worker, Path(folder))
    done = load_training_done(store, config)
    if failed is not None:
        if done is None:
            raise failed
        # An agent that stumbles on its way out is no reason to run a step again that has its result.
        log.event("warning", message=f"training has ended, and then: {failed.message}")
    if done is None:
        raise TransientError(f"training of {run_uri} ended without its record", hint="run it again")
    return done
