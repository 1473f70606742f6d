"""What pyproject.toml cannot say: the packages, found in src/ beside three at the top of the repository, and
the one compiled module. That is optional: where a C compiler or libjpeg-turbo's headers are absent, eosin is
installed without it and decodes JPEG tiles whole."""

from setuptools import Extension, find_namespace_packages, setup

JPEG_PART = Extension(
    "eosin.slides._jpeg_part",
    ["src/eosin/slides/_jpeg_part.c"],
    depends=["src/eosin/slides/_jpeg_entropy.h"],
    libraries=["jpeg"],
    extra_compile_args=["-ffp-contract=off"],  # sums are rounded alike on every machine
    optional=True,
)
AT_THE_TOP = ["eosin_components", "eosin_pipelines", "eosin_recipes"]

setup(packages=[*find_namespace_packages("src"), *AT_THE_TOP], ext_modules=[JPEG_PART])
