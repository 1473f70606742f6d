"""Cancelling and resuming a run from its URI alone, wherever in Kubeflow it goes on."""

from dataclasses import dataclass

from eosin.cluster.api import connect
from eosin.cluster.finish import Cancelled, cancel_on_cluster
from eosin.errors import EosinError, TransientError, UserError
from eosin.kubeflow.client import kubeflow_client
from eosin.kubeflow.runs import FoundRun, find_run, retry_run
from eosin.layout import RunLayout
from eosin.records import KubeflowRun, load_record, update_record
from eosin.runs import load_run
from eosin.storage import open_store

_HOST_HINT = "name Kubeflow's address: --host (kubectl -n kubeflow port-forward svc/ml-pipeline 8888)"


@dataclass(frozen=True)
class Where:
    """What a person says of where a run goes on; each may be empty: what the run itself noted is taken."""

    host: str = ""
    """Address of the Kubeflow Pipelines API."""
    namespace: str = ""
    context: str = ""
    """Of the kubeconfig."""


@dataclass(frozen=True)
class Stopped:
    """What `cancel` has stopped, and where it looked."""

    on_cluster: Cancelled | None
    """None: no cluster was reached."""
    kubeflow_run: str
    """Id of the run that Kubeflow's API was told to terminate."""
    namespace: str
    asked_kubeflow: bool

    def __str__(self) -> str:
        said = [str(self.on_cluster)] if self.on_cluster and self.on_cluster.is_any else []
        said += [f"Kubeflow run {self.kubeflow_run} terminated"] if self.kubeflow_run else []
        if said:
            return "; ".join(said)
        rest = "" if self.asked_kubeflow else "; it has not noted a run of Kubeflow: --host asks there"
        return f"nothing of the run is on the cluster, in namespace {self.namespace}{rest}"


def cancel(run_uri: str, where: Where) -> Stopped:
    """End a run at any stage: its Kubeflow run first, then its training; what it saved stays.

    A Kubeflow run is ended through its Workflow where the kubeconfig reaches it, else through Kubeflow's own
    API where an address is known. Where none is reached, an error says what goes on: `TransientError`
    where another try may reach it, else `UserError`.
    """
    store = open_store(run_uri)
    place = load_record(KubeflowRun, store, RunLayout.KUBEFLOW_RUN)
    host = where.host or (place.host if place else "")
    namespace, on_cluster, terminated = "", None, ""
    troubles: list[EosinError] = []
    try:
        namespace = where.namespace or (place.namespace if place else "")
        if not namespace and store.exists(RunLayout.CONFIG):  # a run that was not planned yet has none
            namespace = load_run(run_uri, store=store).cluster.namespace
        cluster = connect(namespace, context=where.context)
        namespace = cluster.namespace
        on_cluster = cancel_on_cluster(run_uri, cluster, place)
    except EosinError as error:
        troubles.append(error)
    # What the cluster knows of the run's Workflow settles it, unless a person wants Kubeflow asked too.
    asked_kubeflow = on_cluster is not None and place is not None and bool(where.namespace or place.namespace)
    if host and (where.host or not asked_kubeflow):
        try:
            terminated = _terminate_in_kubeflow(run_uri, host, where.namespace, place)
            asked_kubeflow = True
        except EosinError as error:
            troubles.append(error)
    if troubles and (not asked_kubeflow or where.host):
        raise _not_reached(run_uri, place, on_cluster, troubles)
    return Stopped(on_cluster, terminated, namespace, asked_kubeflow)


def note_submission(run_uri: str, place: KubeflowRun) -> str:
    """Note with a run where it was submitted; returns what a person should know where that cannot be done.

    A note of the run's own first step, which knows more, stays.
    """

    def change(before: KubeflowRun | None) -> KubeflowRun | None:
        return None if before is not None and before.run_id == place.run_id else place

    try:
        update_record(KubeflowRun, open_store(run_uri), RunLayout.KUBEFLOW_RUN, change)
    except EosinError as error:
        return f"note: {error.message}: until its first step runs, `eosin cancel` needs --host"
    return ""


def resume(run_uri: str, where: Where) -> str:
    """Have Kubeflow go on with a run that has failed, from the steps that are finished; returns its id.

    Raises `UserError` where no such run is known, or it has not failed.
    """
    place = load_record(KubeflowRun, open_store(run_uri), RunLayout.KUBEFLOW_RUN)
    host = where.host or (place.host if place else "")
    with kubeflow_client(host, where.namespace) as client:
        found = find_run(client, run_uri, run_id=place.run_id if place else "")
        if found is None:
            raise UserError(
                f"Kubeflow knows no run of {run_uri}", hint=f"`eosin submit` begins it again, or {_HOST_HINT}"
            )
        _require_failed(found)
        retry_run(client, found.run_id)
    return found.run_id


def _terminate_in_kubeflow(run_uri: str, host: str, namespace: str, place: KubeflowRun | None) -> str:
    with kubeflow_client(host, namespace) as client:
        found = find_run(client, run_uri, run_id=place.run_id if place else "")
        if found is None or not found.is_active:
            return ""
        client.terminate_run(found.run_id)  # CANCELING at once and FAILED about 20 s later
        return found.run_id


def _not_reached(
    run_uri: str, place: KubeflowRun | None, on_cluster: Cancelled | None, troubles: list[EosinError]
) -> EosinError:
    done = f"{on_cluster}; " if on_cluster and on_cluster.is_any else ""
    run = f"Kubeflow run {place.run_id}" if place and place.run_id else f"a Kubeflow run of {run_uri}"
    hint = next((trouble.hint for trouble in reversed(troubles) if trouble.hint), _HOST_HINT)
    # A person's error where each is one: no kubeconfig, no right to do it. What may pass is tried again.
    passes = any(isinstance(each, TransientError) for each in troubles)
    return (TransientError if passes else UserError)(
        f"{done}{run} may go on, and train: {'; '.join(trouble.message for trouble in troubles)}", hint=hint
    )


def _require_failed(found: FoundRun) -> None:
    if found.is_active:
        raise UserError(f"Kubeflow run {found.run_id} is {found.state.lower()}", hint="it needs no resuming")
    if found.state == "SUCCEEDED":
        raise UserError(f"Kubeflow run {found.run_id} has succeeded", hint="submit a new run URI")
