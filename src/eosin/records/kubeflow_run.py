"""Record of where in Kubeflow a run goes on."""

from __future__ import annotations

from eosin.records.base import Record


class KubeflowRun(Record):
    """Published where the run is submitted, and by its first steps; the newest submission replaces it."""

    namespace: str
    """Of its Workflow and pods; empty: not known where it was submitted."""
    run_id: str = ""
    """By which Kubeflow Pipelines knows it."""
    workflow: str = ""
    """Name of its Workflow, once it has one."""
    pipeline: str = ""
    """Name of the pipeline: pretrain, retrain, …"""
    host: str = ""
    """Address of the API it was submitted to."""
