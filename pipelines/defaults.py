"""Defaults of every pipeline's tasks: access to the bucket, retries. Images have no default."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from kfp import compiler, dsl, kubernetes

# Names of what a person or the chart puts into the namespace for the pods; each may be absent.
S3_SECRET = "eosin-s3"
S3_CONFIG_MAP = "eosin-s3-access"
S3_CA_CONFIG_MAP = "eosin-s3-ca"
S3_PROFILES_SECRET = "eosin-s3-profiles"
IMAGE_PULL_SECRET = "eosin-pull"
_SECRET_KEYS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION",
)  # fmt: skip
# Under names of their own: two sources of one variable are merged into a pod that the API server refuses.
# `eosin.step_process` takes them for what the Secret leaves open.
_CONFIG_MAP_KEYS = {"AWS_ENDPOINT_URL": "EOSIN_AWS_ENDPOINT_URL", "AWS_REGION": "EOSIN_AWS_REGION"}
_CA_FOLDER = "/etc/eosin/ca"
_PROFILES_FOLDER = "/etc/eosin/aws"
# Argo counts it from the first attempt's start and ends whatever runs then: longer than any training.
_RETRIED_FOR = f"{60 * 86400}s"
_NUM_RETRIES = 5
# A launcher of days is moved by upgrades and drains; each replacement finds its training again.
_NUM_LAUNCHER_RETRIES = 50
_SHARED_ARGUMENTS = """        num_index_shards: How many pods scan slides at once.
        num_decode_shards: How many pods decode held-out patches at once.
        num_evaluation_shards: How many pods judge models at once, each a share of the models.
"""
_ACCESS_ARGUMENTS = """\
        s3_secret: Secret with AWS_ACCESS_KEY_ID and the like for every pod; pods start without it too.
        s3_config_map: ConfigMap with AWS_ENDPOINT_URL and AWS_REGION for every pod: the chart makes it.
        s3_ca_config_map: ConfigMap with ca.crt, for a store with a certificate of its own authority.
        image_pull_secret: Secret by which the kubelet pulls the images of a private registry.
    """


@dataclass(frozen=True)
class Access:
    """Names in the namespace by which pods reach the bucket and the registry: parameters of the pipeline."""

    s3_secret: object
    s3_config_map: object
    s3_ca_config_map: object
    image_pull_secret: object


def prepare(
    tasks: Iterable[dsl.PipelineTask], access: Access, launchers: Iterable[dsl.PipelineTask] = ()
) -> None:
    """Access, retries, and no caching: eosin's own idempotence decides. `launchers`: tasks that train."""
    for task in tasks:
        _give_access(task, access)
        _retry(task, _NUM_RETRIES, "10s", 2)
    for task in launchers:
        _give_access(task, access)
        _retry(task, _NUM_LAUNCHER_RETRIES, "30s", 1)


def with_shared_arguments(pipeline: Callable[..., None]) -> Callable[..., None]:
    """`pipeline` with the arguments that all have among those that its docstring describes."""
    pipeline.__doc__ = f"{(pipeline.__doc__ or '').rstrip()}\n{_SHARED_ARGUMENTS}"
    return with_access_arguments(pipeline)


def with_access_arguments(pipeline: Callable[..., None]) -> Callable[..., None]:
    """`pipeline` with the arguments that name its access among those that its docstring describes."""
    pipeline.__doc__ = f"{(pipeline.__doc__ or '').rstrip()}\n{_ACCESS_ARGUMENTS}"
    return pipeline


def write(pipeline: object, path: Path) -> Path:
    """Compile a pipeline to `path`."""
    compiler.Compiler().compile(pipeline, str(path))
    return path


def images_named(index_image: object, train_image: object, evaluate_image: object) -> str:
    """The images of a run as one text, which the first step checks: kfp makes no list of parameters."""
    return f"index={index_image} train={train_image} evaluate={evaluate_image}"


def exit_task(task: dsl.PipelineTask, access: Access, image: object) -> dsl.PipelineTask:
    """`task` as the one that runs last. The exit handler takes no task that was prepared after it."""
    prepare((task.set_container_image(image),), access)
    return task


def _give_access(task: dsl.PipelineTask, access: Access) -> None:
    task.set_caching_options(False)
    kubernetes.use_config_map_as_env(task, access.s3_config_map, _CONFIG_MAP_KEYS, optional=True)
    kubernetes.use_secret_as_env(task, access.s3_secret, {name: name for name in _SECRET_KEYS}, optional=True)
    kubernetes.use_secret_as_volume(task, S3_PROFILES_SECRET, _PROFILES_FOLDER, optional=True)
    kubernetes.use_config_map_as_volume(task, access.s3_ca_config_map, _CA_FOLDER, optional=True)
    kubernetes.set_image_pull_secrets(task, [access.image_pull_secret])


def _retry(task: dsl.PipelineTask, num_retries: int, backoff: str, factor: float) -> None:
    task.set_retry(
        num_retries=num_retries,
        backoff_duration=backoff,
        backoff_factor=factor,
        backoff_max_duration=_RETRIED_FOR,
    )
