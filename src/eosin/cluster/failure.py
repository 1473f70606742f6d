"""Failure of a JobSet in one sentence: which pod, which exit code, its last words, what to do."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eosin.cluster import names
from eosin.cluster.api import Manifest
from eosin.errors import (
    EXIT_CONFIGURATION_IN_POD,
    EXIT_PERMANENT_IN_POD,
    EXIT_TRANSIENT,
    EosinError,
    PermanentError,
    TransientError,
    UserError,
)

_SHOWN_LINES = 5
_AGENT_SAYS = "agent: "
_NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_NO_POD = "no pod is left to say why"
_NO_CONTAINER = {"CreateContainerConfigError", "CreateContainerError"}


@dataclass(frozen=True)
class PodFailure:
    """One container that ended badly."""

    pod: str
    container: str
    exit_code: int
    reason: str
    """`OOMKilled`, `Error`, … as the kubelet gives it."""
    finished_at: str
    evicted: bool


def pod_failures(pods: Sequence[Manifest]) -> list[PodFailure]:
    """Every container that ended with another code than 0, the most telling first.

    What stopped at once explains everything; then memory; then whatever ended first, since the ends
    after it are its consequences. An evicted pod explains nothing unless there is no other.
    """
    found = [failure for pod in pods for failure in _failures_of(pod)]
    at_once = (EXIT_CONFIGURATION_IN_POD, EXIT_PERMANENT_IN_POD)
    return sorted(
        found, key=lambda f: (f.exit_code not in at_once, f.reason != "OOMKilled", f.evicted, f.finished_at)
    )


def explain_failure(
    jobset: Manifest, pods: Sequence[Manifest], last_lines: Callable[[PodFailure], Sequence[str]]
) -> EosinError:
    """The error to raise for a JobSet that failed; `last_lines` reads the end of a container's log."""
    failures = pod_failures(pods)
    name, kind = jobset["metadata"]["name"], jobset.get("kind", "JobSet")
    if not failures:
        failed = names.condition(jobset, "Failed")
        why = f"{failed.get('reason', '')}: {failed.get('message', '')}" if failed else _NO_POD
        return PermanentError(
            f"{kind} {name} failed: {why}",
            hint=f"kubectl -n {jobset['metadata']['namespace']} describe {kind.lower()} {name}",
        )
    failure = failures[0]
    lines = list(last_lines(failure))
    return _error_of(failure, _last_words(lines), _own_hint(lines))


def stuck_pods(pods: Sequence[Manifest]) -> dict[str, str]:
    """Pods that wait for what never comes by itself: pod → what that is, in the kubelet's words."""
    stuck: dict[str, str] = {}
    for pod in pods:
        status = pod.get("status", {})
        for each in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
            waiting = each["state"].get("waiting") or {}
            reason = waiting.get("reason", "")
            said = ": ".join(filter(None, (reason, waiting.get("message", ""))))
            if reason in _NO_IMAGE:
                stuck[pod["metadata"]["name"]] = f"image {each.get('image', '?')} cannot be pulled: {said}"
            elif reason in _NO_CONTAINER:
                stuck[pod["metadata"]["name"]] = said
    return stuck


def _failures_of(pod: Manifest) -> list[PodFailure]:
    evicted = names.condition(pod, "DisruptionTarget") is not None
    ended = [
        (
            container["name"],
            container["state"].get("terminated") or container.get("lastState", {}).get("terminated"),
        )
        for container in pod.get("status", {}).get("containerStatuses") or []
    ]
    return [
        PodFailure(
            pod=pod["metadata"]["name"],
            container=container,
            exit_code=int(end["exitCode"]),
            reason=end.get("reason", ""),
            finished_at=end.get("finishedAt") or "",
            evicted=evicted,
        )
        for container, end in ended
        if end and end["exitCode"] != 0
    ]


def _error_of(failure: PodFailure, words: str, hint: str) -> EosinError:
    what = f"training failed: pod {failure.pod} exited with {failure.exit_code}"
    if failure.exit_code == EXIT_CONFIGURATION_IN_POD:
        hint = hint or "correct the configuration and begin a new run; nothing was retried"
        return UserError(f"{what} (configuration error): {words}", hint=hint)
    if failure.reason == "OOMKilled":
        return PermanentError(
            f"{what}: the kernel killed it for memory: {words}",
            hint="raise `memory` of its pool, or lower cluster.shm_size and patches.tile_cache_bytes; then "
            "run it again: it goes on from the last checkpoint",
        )
    if failure.exit_code == EXIT_PERMANENT_IN_POD:
        return PermanentError(f"{what}: {words}", hint=hint or "no retry mends this: look at `eosin logs`")
    again = "run it again: it goes on from the last checkpoint"
    if failure.exit_code == EXIT_TRANSIENT or failure.evicted:
        return TransientError(f"{what}: {words}", hint=hint or again)
    return PermanentError(
        f"{what} ({failure.reason or 'error'}): {words}", hint=hint or f"mend it, then {again}"
    )


def _last_words(lines: Sequence[str]) -> str:
    """What the agent said of the end, or the last error event, or the last few lines."""
    event = _last_error(lines)
    if event:
        return str(event["message"])
    said = [line.removeprefix(_AGENT_SAYS) for line in lines if line.startswith(_AGENT_SAYS)]
    if said:
        return said[-1].strip()
    shown = [line.strip() for line in lines if line.strip()][-_SHOWN_LINES:]
    return " | ".join(shown) or "it wrote no log"


def _own_hint(lines: Sequence[str]) -> str:
    """The hint of the last error event, or of what the agent said: its next line, set in."""
    event = _last_error(lines)
    if event:
        return str(event.get("hint", ""))
    said = [number for number, line in enumerate(lines) if line.startswith(_AGENT_SAYS)]
    following = lines[said[-1] + 1 :][:1] if said else []
    return following[0].strip() if following and following[0].startswith("  ") else ""


def _last_error(lines: Sequence[str]) -> Manifest | None:
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "error" and event.get("message"):
            return event
    return None
