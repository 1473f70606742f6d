# Slides, index, summary, submission: everything that needs no torch.
# `make publish` gives PYTHON_IMAGE by digest; a bare build takes the tag.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/eosin
ENV PATH=/opt/eosin/bin:$PATH
WORKDIR /src
COPY environment/build.txt images/requirements-index.txt ./
RUN pip install --require-hashes -r build.txt \
 && pip install --require-hashes --no-build-isolation -r requirements-index.txt
COPY . .
RUN pip install --no-deps --no-build-isolation --no-index . \
 && pip check \
 && python images/import_check.py index \
 && python -m compileall -q /opt/eosin

FROM ${PYTHON_IMAGE}
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="eosin-index" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/eosin /opt/eosin
# The root filesystem may be read-only: whatever wants a home gets the emptyDir at /tmp.
ENV PATH=/opt/eosin/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
# No ENTRYPOINT: Kubeflow sets its own command, and one here would come before it.
CMD ["eosin", "--help"]
