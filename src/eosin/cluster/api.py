"""Client of a Kubernetes API server: the calls eosin makes, with errors in a person's words.

Objects are plain JSON: what a newer server adds is carried along instead of failing to parse.
"""

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eosin.cluster import names
from eosin.cluster.names import Resource
from eosin.errors import MissingDependency, TransientError, UserError, why_unreachable

Manifest = dict[str, Any]

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_ATTEMPTS = 5
_BACKOFF_S = 0.5
_REQUEST_TIMEOUT_S = (5, 60)
_WATCH_SLACK_S = 15
_TRANSIENT = {0, 408, 429, 500, 502, 503, 504}


class AlreadyExists(Exception):
    """An object of that name is there (HTTP 409)."""


class Missing(Exception):
    """No such object, or no such API (HTTP 404)."""


class Expired(Exception):
    """The watch began at a resource version the server has forgotten (HTTP 410)."""


class Interrupted(Exception):
    """A stream broke off in the middle."""


class Cluster:
    """A connection to one namespace. Calls that only read are retried; so is all that is idempotent.

    Raises `UserError` for what a person must change (credentials, RBAC, a refused object), with the
    object and the fix; `TransientError` when the server stays out of reach.
    """

    def __init__(
        self,
        client: Any,
        namespace: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        attempts: int = _ATTEMPTS,
    ) -> None:
        from kubernetes.client import AuthorizationV1Api, CoreV1Api, CustomObjectsApi, VersionApi

        self.namespace = namespace
        self._sleep = sleep
        self._attempts = attempts
        self.core = CoreV1Api(client)
        # Its paths serve any API group, built-in ones too.
        self._objects = CustomObjectsApi(client)
        self._authorization = AuthorizationV1Api(client)
        self._version = VersionApi(client)

    def server_version(self) -> str:
        """As `v1.36.3`."""
        return str(self.read("reading the server's version", self._version.get_code)["gitVersion"])

    def served(self, resource: Resource) -> list[str]:
        """Plurals that the server serves under the resource's group and version; needs no Role."""
        doing, discover = f"discovering {resource.api_version}", self._objects.get_api_resources
        try:
            found = self.read(doing, discover, resource.group, resource.version)
        except Missing:
            return []
        return [str(each["name"]) for each in found.get("resources") or []]

    def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Raises `AlreadyExists` where the name is taken, `Missing` where the API is not installed."""
        doing = f"creating {resource.kind} {manifest['metadata']['name']}"
        return self._object(doing, "create", resource, manifest)

    def get(self, resource: Resource, name: str) -> Manifest | None:
        """The object; None where neither it nor its API is there."""
        try:
            return self._object(f"reading {resource.kind} {name}", "get", resource, name)
        except Missing:
            return None

    def list_objects(self, resource: Resource, label_selector: str = "") -> list[Manifest]:
        """Objects of the namespace with such labels. Raises `Missing` where the API is not installed."""
        listed = self._object(f"listing {resource.plural}", "list", resource, label_selector=label_selector)
        return list(listed["items"])

    def patch(self, resource: Resource, name: str, patch: Manifest) -> Manifest:
        """Merge `patch` into an object. Raises `Missing`."""
        return self._object(f"changing {resource.kind} {name}", "patch", resource, name, patch)

    def delete(self, resource: Resource, existing: Manifest, *, propagation: str = "Background") -> None:
        """Delete this very object; one that is gone, or another of its name, stays as it is.

        `propagation` Foreground: it stays until what it owns is gone.
        """
        from kubernetes.client import V1DeleteOptions, V1Preconditions

        metadata = existing["metadata"]
        if metadata.get("deletionTimestamp"):
            return
        body = V1DeleteOptions(
            propagation_policy=propagation, preconditions=V1Preconditions(uid=metadata.get("uid", ""))
        )
        doing = f"deleting {resource.kind} {metadata['name']}"
        with contextlib.suppress(Missing, AlreadyExists):  # a failed precondition is a 409
            self._object(doing, "delete", resource, metadata["name"], body=body)

    def watch(
        self, resource: Resource, name: str, resource_version: str, timeout_s: int
    ) -> Iterator[Manifest]:
        """States of one object from `resource_version` on, until the server closes after `timeout_s`.

        Raises `Expired` and `Interrupted`; the caller reads the object again and goes on.
        """
        response = self._call(
            f"watching {resource.kind} {name}",
            self._objects.list_namespaced_custom_object,
            resource.group,
            resource.version,
            self.namespace,
            resource.plural,
            field_selector=f"metadata.name={name}",
            resource_version=resource_version,
            watch="true",
            timeout_seconds=timeout_s,
            _request_timeout=(_REQUEST_TIMEOUT_S[0], timeout_s + _WATCH_SLACK_S),
        )
        for line in _lines(response):
            event = _event(line)
            if event["type"] == "DELETED":
                return
            if event["type"] in {"ADDED", "MODIFIED"}:
                yield event["object"]

    def list_pods(self, jobset: str) -> list[Manifest]:
        """Pods of the JobSet of that name."""
        return self.list_labelled_pods(f"{names.JOBSET_NAME_LABEL}={jobset}")

    def list_labelled_pods(self, label_selector: str) -> list[Manifest]:
        """Pods of the namespace with such labels."""
        return self._list(f"pods of {label_selector}", "pod", label_selector=label_selector)

    def get_pod(self, name: str) -> Manifest:
        """Raises `Missing`."""
        return self.read(f"reading pod {name}", self.core.read_namespaced_pod, name, self.namespace)

    def get_config_map(self, name: str, namespace: str = "") -> dict[str, str]:
        """Its data. Raises `Missing`."""
        read, place = self.core.read_namespaced_config_map, namespace or self.namespace
        return dict(self.read(f"reading ConfigMap {name}", read, name, place).get("data") or {})

    def warnings(self, prefix: str) -> list[Manifest]:
        """Warning events of objects whose name starts with `prefix`."""
        found = self._list("events", "event", field_selector="type=Warning")
        return [event for event in found if event["involvedObject"].get("name", "").startswith(prefix)]

    def pod_log(self, pod: str, container: str, *, tail_lines: int) -> list[str]:
        """The last lines of a container's log; none where the pod or its log is gone."""
        try:
            response = self._pod_log("reading", pod, container=container, tail_lines=tail_lines)
        except (Missing, UserError):
            return []
        return str(response.data.decode(errors="replace")).splitlines()

    def follow_pod_log(self, pod: str, container: str, since_s: int | None) -> Iterator[str]:
        """Lines of a running container, each with its timestamp before it, until the container ends.

        `since_s` leaves out what is older than so many seconds. Raises `Interrupted`, `Missing`.
        """
        more: dict[str, Any] = {} if since_s is None else {"since_seconds": since_s}
        more |= {"follow": True, "timestamps": True, "_request_timeout": (_REQUEST_TIMEOUT_S[0], None)}
        return _lines(self._pod_log("following", pod, container=container, **more))

    def list_nodes(self) -> list[Manifest]:
        """Nodes of the whole cluster."""
        return list(self.read("listing nodes", self.core.list_node)["items"])

    def list_quotas(self) -> list[Manifest]:
        """ResourceQuotas of the namespace."""
        return self._list("quotas", "resource_quota")

    def can_i(self, verb: str, group: str, resource: str, name: str = "") -> bool:
        """Whether this identity may do `verb` on `resource` (`pods/log` names a subresource), or on the
        one of that name."""
        plural, _, subresource = resource.partition("/")
        attributes = {
            "namespace": self.namespace, "verb": verb, "group": group, "resource": plural,
            "subresource": subresource, "name": name,
        }  # fmt: skip
        review = self.read(
            "asking for permissions",
            self._authorization.create_self_subject_access_review,
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            },
        )
        return bool(review["status"]["allowed"])

    def _object(self, doing: str, verb: str, resource: Resource, *args: Any, **more: Any) -> Manifest:
        function = getattr(self._objects, f"{verb}_namespaced_custom_object")
        where = (resource.group, resource.version, self.namespace, resource.plural)
        return self.read(doing, function, *where, *args, **more)

    def _list(self, what: str, kind: str, **more: Any) -> list[Manifest]:
        """Objects of the core API in the namespace; `kind` as the official client's methods name it."""
        function = getattr(self.core, f"list_namespaced_{kind}")
        return list(self.read(f"listing {what}", function, self.namespace, **more)["items"])

    def _pod_log(self, doing: str, pod: str, **more: Any) -> Any:
        function = self.core.read_namespaced_pod_log
        return self._call(f"{doing} the log of {pod}", function, pod, self.namespace, **more)

    def read(self, doing: str, function: Callable[..., Any], *args: Any, **more: Any) -> Manifest:
        """Call `function` of the official client, retried; its answer as JSON."""
        response = self._call(doing, function, *args, **more)
        try:
            parsed: Manifest = json.loads(response.data)
        except ValueError as error:
            raise TransientError(
                f"{doing}: what answered is not a Kubernetes API server", hint="is there a proxy between?"
            ) from error
        return parsed

    def _call(self, doing: str, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """One request, retried while the server is out of reach or asks for patience."""
        more = {"_preload_content": False, "_request_timeout": _REQUEST_TIMEOUT_S, **more}
        for attempt in range(self._attempts):
            try:
                return function(*args, **more)
            except Exception as error:
                failure = _failure(error, doing, self.namespace)
                if not isinstance(failure, TransientError) or attempt == self._attempts - 1:
                    raise failure from error
            self._sleep(_BACKOFF_S * 2**attempt * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")


def connect(namespace: str = "", *, context: str = "", attempts: int = _ATTEMPTS) -> Cluster:
    """Connect from inside a pod, or as kubectl would from here; each call is tried `attempts` times.

    `context` is one of the kubeconfig, the current one unless given; it has no meaning inside a pod.
    `namespace` defaults to that of the pod, then to the context's, then to `eosin`. Raises `UserError`
    where no cluster is configured.
    """
    try:
        from kubernetes import client, config
    except ImportError:
        raise MissingDependency("kubernetes", "kubeflow") from None
    settings = client.Configuration()
    try:
        if inside_a_pod():
            config.load_incluster_config(client_configuration=settings)
            default = (_SERVICE_ACCOUNT / "namespace").read_text().strip()
        else:
            config.load_kube_config(context=context or None, client_configuration=settings)
            default = _context_namespace(config, context)
    except (config.ConfigException, OSError) as error:
        raise UserError(
            f"no Kubernetes cluster is configured here: {error}",
            hint="set KUBECONFIG, or try `kubectl cluster-info`",
        ) from error
    settings.retries = False
    settings.connection_pool_maxsize = 64
    return Cluster(client.ApiClient(settings), namespace or default or "eosin", attempts=attempts)


def inside_a_pod() -> bool:
    """Whether this process has a service account's token."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and (_SERVICE_ACCOUNT / "token").exists()


def is_configured() -> bool:
    """Whether `connect` would find a cluster to try, without trying or importing its client."""
    files = os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)
    return inside_a_pod() or any(Path(file).expanduser().is_file() for file in files if file)


def _context_namespace(config: Any, context: str) -> str:
    contexts, active = config.list_kube_config_contexts()
    chosen = next((each for each in contexts if each["name"] == context), active)
    return str(chosen["context"].get("namespace", ""))


def _lines(response: Any) -> Iterator[str]:
    from kubernetes.watch.watch import iter_resp_lines

    try:
        yield from iter_resp_lines(response)
    except Exception as error:
        raise Interrupted(str(error)) from error
    finally:
        response.release_conn()


def _event(line: str) -> Manifest:
    """One event of a watch. Raises `Expired`, and `Interrupted` for any other error or half a line."""
    try:
        event: Manifest = json.loads(line)
        kind, subject = event["type"], event["object"]
    except (ValueError, KeyError, TypeError) as error:
        raise Interrupted(f"a watch event cannot be read: {line[:200]}") from error
    if kind == "ERROR":
        message = str(subject.get("message", subject))
        raise Expired(message) if subject.get("code") == 410 else Interrupted(message)
    return event


def _failure(error: Exception, doing: str, namespace: str) -> Exception:
    """What an error of the client means to the caller."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if not isinstance(error, ApiException):
        if isinstance(error, HTTPError | OSError | ValueError):
            return TransientError(
                f"{doing}: the API server cannot be reached: {why_unreachable(error)}",
                hint="is it up? `kubectl cluster-info` asks the same",
            )
        return error
    status = int(error.status or 0)
    if status in (404, 409, 410):
        return {404: Missing, 409: AlreadyExists, 410: Expired}[status](_message(error))
    if status in _TRANSIENT:
        return TransientError(f"{doing}: the API server answered {status} {_message(error)}")
    if status == 401:
        return UserError(f"{doing}: the API server does not know these credentials", hint="log in again")
    if status == 403:
        return UserError(
            f"{doing} in namespace {namespace} is forbidden: {_message(error)}",
            hint="bind the launcher Role to this service account; `eosin doctor --cluster` lists what lacks",
        )
    return UserError(f"{doing}: the API server refused: {_message(error)}")


def _message(error: Any) -> str:
    """The sentence in an API error's Status body."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason or body[:200])
