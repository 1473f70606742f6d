#!/bin/sh
# Resolve the locked requirements of each image for its own platform. `make lock` runs it.
# Nothing is installed: resolving torch for CUDA needs neither a GPU nor its wheels.
set -eu
cd "$(dirname "$0")/.."
UV="${UV:-uv}"

lock() {
  output="images/requirements-$1.txt"
  shift
  "$UV" pip compile --quiet --generate-hashes --no-emit-index-url \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --custom-compile-command "make lock" --output-file "$output" "$@"
  echo "$output: $(grep -c '==' "$output") packages"
}

lock build images/requirements-build.in
# onnx: tissue models of one's own; datasets: public sets published as HDF5 or MATLAB files.
lock index pyproject.toml --extra onnx --extra kubeflow --constraint constraints.txt
lock train pyproject.toml --extra train --extra gpu --extra tensorboard --extra kubeflow --constraint constraints.txt
lock evaluate pyproject.toml --extra evaluate --extra datasets --extra kubeflow --constraint constraints.txt
