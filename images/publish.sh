#!/bin/sh
# Build the images, and push them with the chart and the pipelines: see images/publish.py.
exec "${PYTHON:-python3}" "$(dirname "$0")/publish.py" "$@"
