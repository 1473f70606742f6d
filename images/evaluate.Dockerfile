# Evaluation: torch with CUDA, no decoders of its own. The driver comes from the node.
# `make publish` gives PYTHON_IMAGE by digest; a bare build takes the tag.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/eosin
ENV PATH=/opt/eosin/bin:$PATH
WORKDIR /src
COPY environment/build.txt images/requirements-evaluate.txt ./
RUN pip install --require-hashes -r build.txt \
 && pip install --require-hashes --no-build-isolation -r requirements-evaluate.txt
COPY . .
RUN pip install --no-deps --no-build-isolation --no-index . \
 && pip check \
 && python images/import_check.py evaluate \
 && python -m compileall -q /opt/eosin

FROM ${PYTHON_IMAGE}
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="eosin-evaluate" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/eosin /opt/eosin
# The root filesystem may be read-only: whatever wants a home gets the emptyDir at /tmp.
ENV PATH=/opt/eosin/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
USER 10001:10001
# No ENTRYPOINT: Kubeflow sets its own command, and one here would come before it.
CMD ["eosin", "--help"]
