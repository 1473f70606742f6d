"""Pictures that a task shows beside its figures."""
