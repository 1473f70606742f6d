"""The tasks, one a file, and the classifiers that they train on frozen embeddings."""
