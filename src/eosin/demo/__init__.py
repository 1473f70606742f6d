"""The demo: a real S3 server on loopback, slides, and the whole pipeline on one machine."""
