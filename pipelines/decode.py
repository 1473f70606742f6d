"""A patch set of an index, without a run.

`python -m eosin_pipelines.decode` compiles it to `decode.yaml`.
"""

from pathlib import Path

from eosin_components.tasks import decode_tiles, finish, plan_tiles
from eosin_pipelines.defaults import (
    IMAGE_PULL_SECRET,
    S3_CA_CONFIG_MAP,
    S3_CONFIG_MAP,
    S3_SECRET,
    Access,
    exit_task,
    prepare,
    with_access_arguments,
    write,
)
from kfp import dsl

COMPILED = Path(__file__).with_suffix(".yaml")


@dsl.pipeline(name="eosin-decode", description="Decode a patch set of an index, without a run.")
@with_access_arguments
def decode(
    run: str,
    index: str,
    train_image: str,
    name: str = "grid",
    settings: list = [],  # noqa: B006  (kfp compiles the literal into the YAML)
    slide_patterns: list = [],  # noqa: B006
    num_shards: int = 4,
    s3_secret: str = S3_SECRET,
    s3_config_map: str = S3_CONFIG_MAP,
    s3_ca_config_map: str = S3_CA_CONFIG_MAP,
    image_pull_secret: str = IMAGE_PULL_SECRET,
) -> None:
    """Decode in shards; the last one publishes the set's manifest.

    Args:
        run: URI of the folder that gets the set, as patches/NAME. The same again goes on.
        index: URI of the index.
        train_image: Image of all tasks, by digest; `make publish` names it.
        name: Of the set.
        settings: What the set is, each "key=value": mpp=0.5, kind=sampled; patches.… say how slides are read.
        slide_patterns: Only slides whose keys match one; empty: all.
        num_shards: How many pods decode at once.
    """
    access = Access(s3_secret, s3_config_map, s3_ca_config_map, image_pull_secret)
    with dsl.ExitHandler(exit_task(finish(run=run), access, train_image), name="decoding"):
        planned = plan_tiles(run=run, image=train_image, num_shards=num_shards, index=index, patches="")
        planned.set_container_image(train_image)
        with dsl.ParallelFor(planned.outputs["Output"], name="decode-shards") as part:
            decoded = decode_tiles(
                run=part.run_uri, shard=part.shard, num_shards=part.num_shards, index=index, name=name,
                settings=settings, slide_patterns=slide_patterns,
            ).set_container_image(train_image)  # fmt: skip
        prepare((planned, decoded), access)


if __name__ == "__main__":
    print(write(decode, COMPILED))
