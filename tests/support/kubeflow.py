"""The part of the Kubeflow Pipelines API (v2beta1) that eosin uses, over HTTP for kfp's own client.

It behaves as a backend of 2.17.0 was seen to: Terminate makes a run CANCELING, then FAILED, never CANCELED;
a FAILED run can be retried and keeps its id; parameters that are unknown, missing or of another type are
refused with 400, and what is too large for etcd with 500. `Argo` goes through a submitted pipeline as Argo
4.0 does under Kubeflow's own config map.
"""

import json
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from images import publish

_PAGE = 2
_PREFIX = "/apis/v2beta1/"
# A list given as a string is parsed.
_KINDS: dict[str, Any] = {
    "STRING": str, "NUMBER_INTEGER": (int, float), "NUMBER_DOUBLE": (int, float), "BOOLEAN": bool,
    "LIST": (list, str), "STRUCT": (dict, str),
}  # fmt: skip
_MOST_BYTES = 1_500_000


class Kubeflow:
    """Holds experiments, runs and recurring runs; `failures` are answered, one a request, before anything."""

    def __init__(self) -> None:
        self.kinds: dict[str, list[dict[str, Any]]] = {"experiments": [], "runs": [], "recurringruns": []}
        self.failures: list[tuple[int, str]] = []
        self.fail_creation = False
        """Of recurring runs."""
        self.requests: list[str] = []
        self.workflows: dict[str, Argo] = {}
        """By the run's id, from the first `execute` on."""
        self._made = 0
        self.host = ""

    @property
    def runs(self) -> list[dict[str, Any]]:
        return self.kinds["runs"]

    def run(self, run_id: str) -> dict[str, Any] | None:
        return next((each for each in self.runs if each["run_id"] == run_id), None)

    def execute(self, run_id: str, happens: "Happens" = lambda task, attempt: "ok") -> "Argo":
        """Have Argo go through a run that was submitted or retried, to its end."""
        run = self.run(run_id)
        assert run is not None and run["state"] in ("PENDING", "RUNNING")
        spec = run["pipeline_spec"]
        argo = self.workflows.setdefault(run_id, Argo(spec.get("pipeline_spec", spec)))
        run["state"] = argo.run(happens)
        return argo

    def settle(self) -> None:
        """What the controller does in the next 22 s: runs that are being terminated have failed."""
        for each in self.runs:
            if each["state"] == "CANCELING":
                each["state"] = "FAILED"

    def act(self, run_id: str, verb: str) -> tuple[int, str]:
        """`terminate` or `retry`; HTTP status and message."""
        run = self.run(run_id)
        if run is None:
            return 404, f"run {run_id} is not there"
        if verb == "terminate":
            if run["state"] not in ("PENDING", "RUNNING", "PAUSED"):
                return 400, f"run {run_id} cannot be terminated: it is {run['state']}"
            run["state"] = "CANCELING"
            return 200, ""
        if run["state"] != "FAILED":
            return 400, f"workflow must be Failed/Error to retry, not {run['state']}"
        run["state"] = "RUNNING"
        if run_id in self.workflows:  # a retry unsets the deadline of a terminate, or it would end at once
            self.workflows[run_id].workflow_spec.pop("activeDeadlineSeconds", None)
        return 200, ""

    @property
    def schedules(self) -> list[dict[str, Any]]:
        return self.kinds["recurringruns"]

    def create(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        self._made += 1
        name = {"experiments": "experiment_id", "runs": "run_id", "recurringruns": "recurring_run_id"}[kind]
        made = {**body, name: f"{kind}-{self._made}"}
        if kind == "runs":
            made |= {"state": "PENDING", "created_at": f"2026-01-01T00:00:{self._made:02d}Z"}
        if kind == "recurringruns":
            made["status"] = "ENABLED" if body["mode"] == "ENABLE" else "DISABLED"
        self.kinds[kind].append(made)
        return made

    def refusal(self, kind: str, body: dict[str, Any]) -> str:
        """As the real API: parameters are those of the pipeline, a cron has six fields."""
        if kind == "experiments":
            return ""
        spec = body["pipeline_spec"].get("pipeline_spec", body["pipeline_spec"])
        declared = spec["root"]["inputDefinitions"]["parameters"]
        given = body["runtime_config"]["parameters"]
        if unknown := sorted(set(given) - set(declared)):
            return f"parameter {unknown} is not declared"
        needed = {name for name, each in declared.items() if "defaultValue" not in each}
        if missing := sorted(needed - set(given)):
            return f"parameter {missing} is required"
        for name, value in given.items():
            kinds = _KINDS[declared[name]["parameterType"]]
            if not isinstance(value, kinds):
                return (
                    f"input parameter {name} requires type {declared[name]['parameterType']}, not {value!r}"
                )
        if kind == "recurringruns":
            cron = body["trigger"]["cron_schedule"]["cron"]
            return "" if len(cron.split()) == 6 else f"cron {cron} does not parse"
        return ""

    def listed(self, kind: str, query: dict[str, list[str]]) -> dict[str, Any]:
        found = self.kinds[kind]
        if "experiment_id" in query:
            found = [each for each in found if each["experiment_id"] == query["experiment_id"][0]]
        for predicate in json.loads(query["filter"][0])["predicates"] if "filter" in query else []:
            key = {"name": "display_name"}.get(predicate["key"], predicate["key"])
            wanted = predicate.get("string_value", predicate.get("stringValue"))
            found = [each for each in found if each.get(key) == wanted]
        start = int(query.get("page_token", ["0"])[0] or 0)
        field = {"recurringruns": "recurringRuns"}.get(kind, kind)
        page: dict[str, Any] = {field: found[start : start + _PAGE], "total_size": len(found)}
        if start + _PAGE < len(found):
            page["next_page_token"] = str(start + _PAGE)
        return page


Happens = Callable[[str, int], str]
"""What the attempt of a task comes to: ok, exit N, deleted (its pod, or its node), evicted, or terminate."""
_TASK_S = 60.0
_TRAINING_S = 3 * 86400.0
_REPLACED_AFTER_S = 11.0
_EXIT_TASK_AFTER_S = 38.0
_TTL_S = 3600.0


class Argo:
    """A Workflow of a compiled pipeline, with the controller's rules and a clock of its own.

    A pod that is deleted is an Error and tried again; one that ends with an error, or whose phase becomes
    Failed, is not, unless `retry_policy` is Always. All is over `backoffMaxDuration` after a task's first
    start. The exit task runs after success, failure and terminate, and sees FAILED for the last two. An hour
    after the end the Workflow is deleted.
    """

    def __init__(self, spec: dict[str, Any], retry_policy: str = "OnError") -> None:
        self._components = spec["components"]
        root = spec["root"]["dag"]["tasks"]
        (handler,) = [task for task in root.values() if "triggerPolicy" not in task]
        (self.exit_task,) = [name for name, task in root.items() if "triggerPolicy" in task]
        self.tasks = dict(self._leaves(handler["componentRef"]["name"]))
        self._retry = retry_policy
        self.now_s = 0.0
        self.ended_s = 0.0
        self.finished: list[str] = []
        self.attempts: Counter[str] = Counter()
        self.exit_saw: list[str] = []
        self.workflow_spec: dict[str, Any] = {}

    @property
    def is_there(self) -> bool:
        """Whether the Workflow has not been deleted by its TTL."""
        return not self.ended_s or self.now_s < self.ended_s + _TTL_S

    def run(self, happens: Happens) -> str:
        """Go through what is not finished; the state of the run then."""
        state = "FAILED" if "activeDeadlineSeconds" in self.workflow_spec else "SUCCEEDED"
        for name, task in self.tasks.items():
            if name in self.finished or state == "FAILED":
                continue
            if not self._attempt(name, task, happens):
                state = "FAILED"
                continue
            self.finished.append(name)
        self.now_s += _EXIT_TASK_AFTER_S
        self.exit_saw.append(state)
        self.ended_s = self.now_s
        return state

    def _attempt(self, name: str, task: dict[str, Any], happens: Happens) -> bool:
        policy = task.get("retryPolicy") or {}
        most = int(policy.get("maxRetryCount", 2))
        until_s = self.now_s + float(str(policy.get("backoffMaxDuration", "3600s")).rstrip("s"))
        for _ in range(most + 1):
            self.attempts[name] += 1
            what = happens(name, self.attempts[name])
            self.now_s += _TRAINING_S if name == "train" else _TASK_S
            if what == "terminate":
                self.workflow_spec["activeDeadlineSeconds"] = 0
                return False
            if self.now_s > until_s and self.attempts[name] > 1:
                return False  # Max duration limit exceeded
            if what == "ok":
                return True
            if what != "deleted" and self._retry != "Always":
                return False
            self.now_s += _REPLACED_AFTER_S
            if self.now_s > until_s:
                return False
        return False

    def _leaves(self, component: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Tasks of containers in the order in which they may run; loops once through."""
        tasks, done = dict(self._components[component]["dag"]["tasks"]), set[str]()
        while tasks:
            ready = next(name for name, task in tasks.items() if set(task.get("dependentTasks", ())) <= done)
            task = tasks.pop(ready)
            done.add(ready)
            inner = task["componentRef"]["name"]
            if "dag" in self._components[inner]:
                yield from self._leaves(inner)
            else:
                yield ready, task


@contextmanager
def kubeflow_server() -> Iterator[Kubeflow]:
    """The API on a free port of this machine."""
    kubeflow = Kubeflow()

    class Handler(_Handler):
        api = kubeflow

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kubeflow.host = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield kubeflow
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    api: Kubeflow

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        kind = url.path.removeprefix(_PREFIX)
        if kind == "healthz":  # the client asks it over and over where it fails
            self._answer(200, {"multi_user": False})
            return
        if self._fails():
            return
        run = self.api.run(kind.removeprefix("runs/"))
        if kind in self.api.kinds:
            self._answer(200, self.api.listed(kind, parse_qs(url.query)))
        elif run is not None:
            self._answer(200, run)
        else:
            self._answer(404, {"message": f"no {url.path}"})

    def do_POST(self) -> None:
        num_bytes = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(num_bytes) or b"{}")
        kind = self.path.removeprefix(_PREFIX)
        if self._fails():
            return
        if acted := re.fullmatch(r"runs/([^/:]+):(terminate|retry)", kind):
            status, message = self.api.act(acted[1], acted[2])
            self._answer(status, {"error_message": message} if message else {})
            return
        if num_bytes > _MOST_BYTES:
            self._answer(500, {"error_message": "etcdserver: request is too large"})
            return
        if kind == "recurringruns" and self.api.fail_creation:
            self._answer(500, {"error_message": "the database is away"})
            return
        refusal = self.api.refusal(kind, body)
        if refusal:
            self._answer(400, {"error_message": refusal})
        else:
            self._answer(200, self.api.create(kind, body))

    def do_DELETE(self) -> None:
        found = re.fullmatch(rf"{_PREFIX}recurringruns/(\S+)", self.path)
        if self._fails():
            return
        kept = [each for each in self.api.schedules if found and each["recurring_run_id"] != found[1]]
        gone = len(self.api.schedules) - len(kept)
        self.api.schedules[:] = kept
        self._answer(200 if gone else 404, {})

    def _fails(self) -> bool:
        self.api.requests.append(f"{self.command} {urlsplit(self.path).path}")
        if self.api.failures:
            status, message = self.api.failures.pop(0)
            self._answer(status, {"error_message": message})
            return True
        return False

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@lru_cache
def published_pipeline(pipeline: str) -> Path:
    """The copy of a pipeline that `make publish` writes: with images."""
    folder = Path(tempfile.mkdtemp())
    digests = {image: f"reg/{image}@sha256:{'0' * 64}" for image in ("index", "train", "evaluate")}
    written = publish.pipelines_with_images(digests, folder)
    return next(path for path in written if path.stem == pipeline)
