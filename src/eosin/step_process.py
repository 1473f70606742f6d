"""Process of one step: transient errors tried again in it, the last error reported where a person looks.

Kubeflow's own retries cannot be relied on: as installed, it tries a step again whose pod was deleted, and
none that ended with an error. So what may pass is waited for here.
"""

import contextlib
import inspect
import json
import os
import random
import re
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from eosin.errors import EosinError, TransientError, as_user_error, describe, exit_code_of
from eosin.layout import RunLayout
from eosin.observability import RunLog, show_warnings
from eosin.process import follow
from eosin.records import StepFailure, load_record
from eosin.runs import dated
from eosin.storage import open_store

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = "EOSIN_STEP_PATIENCE_S"
"""How long a step in a pod tries again what may pass."""
_PATIENCE_S = 1800.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 120.0
_TERMINATION_LOG = Path("/dev/termination-log")
_TERMINATION_BYTES = 2048
_CA_FILE = Path("/etc/eosin/ca/ca.crt")
_PROFILES_FILE = Path("/etc/eosin/aws/credentials")
# What tells one run of a step from the others of its kind, in the order of its name.
_PARTS = ("shard", "model", "task")
_RUNS = ("run_uri", "study_uri")
_FIRST_STEPS = {"plan", "plan_study", "plan_retrain", "plan_tiles", "train"}


def as_step(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a step in a pod or subprocess of its own, and end the process with its exit code where it fails.

    In a pod a `TransientError` is waited out for half an hour (`EOSIN_STEP_PATIENCE_S`). The last error is
    one log line, the pod's termination message, and a record in the run, which the step's success deletes.
    """
    show_warnings()
    runner_pid = os.environ.get("EOSIN_RUNNER_PID")
    if runner_pid:
        follow(int(runner_pid))
    take_store_access()
    run_uri, step = _identity(function, args, kwargs)
    if run_uri and in_pod() and function.__name__ in _FIRST_STEPS:
        _record_kubeflow_run(run_uri)
    try:
        result = patiently(lambda: function(*args, **kwargs), patience_s=_patience_s())
    except Exception as raised:
        error = as_user_error(raised)
        assert isinstance(error, Exception)
        report_error(error)
        _write_termination_message(error)
        if run_uri and (in_pod() or _is_begun(run_uri)):
            publish_failure(run_uri, failure_of(error, step))
        sys.exit(exit_code_of(error))
    if run_uri:
        _forget_failure(run_uri, step)
    return result


def _is_begun(run_uri: str) -> bool:
    """Whether there is a run: one whose plan was refused leaves nothing behind."""
    with contextlib.suppress(Exception):
        return open_store(run_uri).exists(RunLayout.CONFIG)
    return False


def patiently(
    call: Callable[[], R],
    *,
    patience_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> R:
    """What `call` returns, tried again after a `TransientError` until `patience_s` has passed.

    The time counts from the first of several errors in a row: a call that worked for longer than that begins
    anew. Every wait is said on standard error, with the time at which it is given up.
    """
    first_s, pause_s = None, _FIRST_PAUSE_S
    while True:
        began_s = clock()
        try:
            return call()
        except TransientError as error:
            now_s = clock()
            if first_s is None or now_s - began_s > patience_s:
                first_s, pause_s = now_s, _FIRST_PAUSE_S
            left_s = first_s + patience_s - now_s
            if left_s <= 0:
                raise
            wait_s = min(pause_s * random.uniform(0.8, 1.2), left_s)
            _say_waiting(error, wait_s, left_s)
        sleep(wait_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _say_waiting(error: TransientError, wait_s: float, left_s: float) -> None:
    given_up = datetime.fromtimestamp(time.time() + left_s, UTC).isoformat(timespec="seconds")
    RunLog("step").event("retry", message=error.message, in_s=round(wait_s), given_up_at=given_up)


def report_error(error: Exception) -> None:
    """Write the error to standard error: a JSON line where `EOSIN_LOG=json`, else for a person."""
    if not isinstance(error, EosinError) or os.environ.get("EOSIN_TRACEBACK") == "1":
        traceback.print_exception(error)
    if os.environ.get("EOSIN_LOG") == "json":
        fields = {"message": getattr(error, "message", describe(error)), "hint": getattr(error, "hint", "")}
        line = {"event": "error", "kind": type(error).__name__, "exit_code": exit_code_of(error), **fields}
        print(json.dumps(line), file=sys.stderr, flush=True)
    else:
        print(f"error: {describe(error)}", file=sys.stderr, flush=True)


def failure_of(error: Exception, step: str) -> StepFailure:
    """The record of `error`, which ended `step` in this process just now."""
    return StepFailure(
        step=step,
        message=getattr(error, "message", describe(error)),
        hint=getattr(error, "hint", ""),
        kind=type(error).__name__,
        exit_code=exit_code_of(error),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        pod=os.environ.get("HOSTNAME", "") if in_pod() else "",
    )


def publish_failure(run_uri: str, failure: StepFailure) -> None:
    """Put the record, and a line of the step's log, into the run. Never raises: it reports another error."""
    with contextlib.suppress(Exception):
        store = open_store(run_uri)
        with contextlib.suppress(EosinError):
            before = load_record(StepFailure, store, RunLayout.failure(failure.step))
            failure = failure.model_copy(update={"attempt": before.attempt + 1 if before else 1})
        store.put(RunLayout.failure(failure.step), failure.to_json())
        fields = failure.model_dump(include={"kind", "exit_code", "message", "hint", "attempt", "pod"})
        line = {"time": failure.time, "source": failure.step, "event": "error", **fields}
        part = f"{re.sub(r'[^0-9T]', '', failure.time)[:15]}-error-{failure.attempt:04d}"
        store.put(RunLayout.log(failure.step, part), f"{json.dumps(line)}\n".encode())


def publish_silent_failure(run_uri: str, failure: StepFailure) -> None:
    """As `publish_failure`, unless the step itself has said more."""
    with contextlib.suppress(Exception):
        said = [
            info.key for info in open_store(run_uri).list(RunLayout.failure(failure.step)[: -len(".json")])
        ]
        if not said:
            publish_failure(
                run_uri, failure.model_copy(update={"hint": failure.hint.replace("RUN", run_uri)})
            )


def take_store_access() -> None:
    """Endpoint, region, authority and profiles that a pod is given, where nothing nearer names them."""
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION"):
        preset = os.environ.get(f"EOSIN_{name}")
        if preset and not os.environ.get(name):
            os.environ[name] = preset
    if _CA_FILE.exists():
        os.environ.setdefault("AWS_CA_BUNDLE", str(_CA_FILE))
    if _PROFILES_FILE.exists():  # profiles that sources of slides name
        os.environ.setdefault("AWS_SHARED_CREDENTIALS_FILE", str(_PROFILES_FILE))


def in_pod() -> bool:
    """Whether this process runs in a pod of Kubernetes."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def _patience_s() -> float:
    given = os.environ.get(PATIENCE)
    if given is not None:
        return float(given)
    return _PATIENCE_S if in_pod() else 0.0


def _identity(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, str]:
    """The run a step works for (empty: none) and the name of this run of the step."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        bound = {}
    run_uri = next((str(bound[name]) for name in _RUNS if bound.get(name)), "")
    parts = [function.__name__.replace("_", "-")]
    for name in _PARTS:
        if isinstance(value := bound.get(name), int):
            parts.append(f"{value:05d}")
        elif value:
            parts.append(str(value))
    return dated(run_uri), re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def _record_kubeflow_run(run_uri: str) -> None:
    """Note with the run where in Kubeflow it goes on, for `eosin cancel` and `status` from anywhere."""
    from eosin.cluster.api import connect
    from eosin.cluster.workflow import find_launcher

    try:
        found = find_launcher(connect(attempts=2)).kubeflow_run
        if found is not None:
            open_store(run_uri).put(RunLayout.KUBEFLOW_RUN, found.to_json())
    except Exception as error:  # it helps people, and must not be what stops a run
        RunLog("step").event(
            "warning", message=f"the run's place in Kubeflow is not noted: {describe(error)}"
        )


def _forget_failure(run_uri: str, step: str) -> None:
    with contextlib.suppress(Exception):
        store = open_store(run_uri)
        if store.exists(RunLayout.failure(step)):
            store.delete([RunLayout.failure(step)])


def _write_termination_message(error: Exception) -> None:
    """What Kubernetes and Argo show of a container that has ended."""
    if in_pod():
        with contextlib.suppress(OSError):
            _TERMINATION_LOG.write_bytes(describe(error).encode()[:_TERMINATION_BYTES])
