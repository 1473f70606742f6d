"""What a task shows beside its figures."""
