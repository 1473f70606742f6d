"""Features of the slides of an index, or of a patch set, without a run.

`python -m eosin_pipelines.embed` compiles it to `embed.yaml`.
"""

from pathlib import Path

from eosin_components.tasks import embed_tiles, finish, plan_tiles
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


@dsl.pipeline(name="eosin-embed", description="Embed an index or a patch set by any model, without a run.")
@with_access_arguments
def embed(
    run: str,
    model: str,
    evaluate_image: str,
    index: str = "",
    patches: str = "",
    settings: list = [],  # noqa: B006  (kfp compiles the literal into the YAML)
    slide_patterns: list = [],  # noqa: B006
    format: str = "hdf5",
    read_out: str = "last",
    num_shards: int = 4,
    s3_secret: str = S3_SECRET,
    s3_config_map: str = S3_CONFIG_MAP,
    s3_ca_config_map: str = S3_CA_CONFIG_MAP,
    image_pull_secret: str = IMAGE_PULL_SECRET,
) -> None:
    """Embed in shards of slides; the last one publishes the manifest.

    Args:
        run: URI of the folder that gets the features, one file a slide. The same again goes on.
        model: URI of a run or a teacher's folder, timm:NAME, or timm:ARCH@URI of a safetensors file.
        evaluate_image: Image of all tasks, by digest; `make publish` names it.
        index: URI of the index; or give patches.
        patches: Folder of a patch set, OUT/patches/NAME, in place of an index.
        settings: Of the grid over an index, mpp=0.5, patch_px=224; patches.… say how slides are read.
        slide_patterns: Only slides whose keys match one; empty: all.
        format: hdf5 (as CLAM and TRIDENT read it), parquet or safetensors.
        read_out: last, or the class tokens of N blocks: cls_last_N, cls_last_N_mean_patch.
        num_shards: How many pods embed at once.
    """
    access = Access(s3_secret, s3_config_map, s3_ca_config_map, image_pull_secret)
    with dsl.ExitHandler(exit_task(finish(run=run), access, evaluate_image), name="embedding"):
        planned = plan_tiles(
            run=run, image=evaluate_image, num_shards=num_shards, index=index, patches=patches
        ).set_container_image(evaluate_image)
        with dsl.ParallelFor(planned.outputs["Output"], name="embed-shards") as part:
            embedded = embed_tiles(
                run=part.run_uri, shard=part.shard, num_shards=part.num_shards, model=model, index=index,
                patches=patches, settings=settings, slide_patterns=slide_patterns, format=format,
                read_out=read_out,
            ).set_container_image(evaluate_image)  # fmt: skip
        prepare((planned, embedded), access)


if __name__ == "__main__":
    print(write(embed, COMPILED))
