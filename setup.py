"""The one compiled module, which is optional: where a C compiler or libjpeg-turbo's headers are absent, eosin
is installed without it and decodes JPEG tiles whole. All else about the package is in pyproject.toml."""

from setuptools import Extension, setup

JPEG_PART = Extension(
    "eosin.slides._jpeg_part", ["src/eosin/slides/_jpeg_part.c"], libraries=["jpeg"], optional=True
)

setup(ext_modules=[JPEG_PART])
