"""What every pipeline gives its tasks: images, credentials, retries."""

from collections.abc import Iterable

from kfp import dsl, kubernetes

REGISTRY = "eosin"
INDEX_IMAGE = f"{REGISTRY}/index:0.1.0"
TRAIN_IMAGE = f"{REGISTRY}/train:0.1.0"
EVALUATE_IMAGE = f"{REGISTRY}/evaluate:0.1.0"
# What a pod needs to reach the bucket where it has no identity of its own; each key may be absent.
S3_ENVIRONMENT = {
    name: name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION")
}


def prepare(tasks: Iterable[dsl.PipelineTask], s3_secret: object) -> None:
    """Credentials for every task, three attempts, and no caching: eosin's own idempotence decides."""
    for task in tasks:
        task.set_caching_options(False)
        kubernetes.use_secret_as_env(task, s3_secret, S3_ENVIRONMENT, optional=True)
        task.set_retry(num_retries=2, backoff_duration="10s", backoff_factor=2)
