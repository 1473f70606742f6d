"""The model registry: under each name the current teacher, moved only by a conditional put."""
