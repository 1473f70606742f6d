# Training and decoding: torch with CUDA, cuCIM and nvImageCodec. The driver comes from the node.
# `make publish` gives PYTHON_IMAGE by digest; a bare build takes the tag.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/eosin
ENV PATH=/opt/eosin/bin:$PATH
WORKDIR /src
# For the one compiled module, which decodes parts of JPEG tiles.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev libjpeg62-turbo-dev \
 && rm -rf /var/lib/apt/lists/*
COPY environment/build.txt images/requirements-train.txt ./
RUN pip install --require-hashes -r build.txt \
 && pip install --require-hashes --no-build-isolation -r requirements-train.txt
COPY . .
RUN pip install --no-deps --no-build-isolation --no-index . \
 && pip check \
 && python images/import_check.py train \
 && python -m compileall -q /opt/eosin

FROM ${PYTHON_IMAGE}
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="eosin-train" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# train.compile: Triton compiles its launchers with the system's C compiler, torch what stays on the CPU with
# its C++ compiler (g++ brings gcc). The compiled module needs libjpeg-turbo.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libc6-dev libjpeg62-turbo \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/eosin /opt/eosin
# The root filesystem may be read-only: whatever wants a home gets the emptyDir at /tmp.
ENV PATH=/opt/eosin/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
USER 10001:10001
# No ENTRYPOINT: Kubeflow sets its own command, and one here would come before it.
CMD ["eosin", "--help"]
