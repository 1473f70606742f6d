"""One Kubeflow component a file; each calls one function of the package."""
