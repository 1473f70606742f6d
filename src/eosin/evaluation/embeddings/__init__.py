"""From images to frozen embeddings and tokens, computed once and shared by tasks."""
