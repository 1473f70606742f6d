"""Compiled pipelines: parameters, pods of the tasks, runs and schedules on Kubeflow, runs on this machine."""
