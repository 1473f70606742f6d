"""Kinds of evaluation task, one a file: configuration, dataset, protocol and what is computed.

A module here is read with every configuration (`eosin.config.task`), so it imports numpy, torch and whatever
else is heavy inside its methods.
"""
