"""Pretrain pathology foundation models on Kubernetes, straight from whole-slide images in S3."""

__version__ = "0.1.0"
