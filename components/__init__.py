"""Components of the Kubeflow pipelines."""
