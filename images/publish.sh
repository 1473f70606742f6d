#!/bin/sh
# Build the images; with a registry, push them and the chart, and write down their digests.
#   images/publish.sh                        build for this machine (`make images`)
#   images/publish.sh registry.example/me    build, push, write images/digests.yaml (`make publish`)
set -eu
cd "$(dirname "$0")/.."
REGISTRY="${1:-}"
PYTHON_TAG="${PYTHON_TAG:-docker.io/library/python:3.11-slim-bookworm}"
PLATFORM="${PLATFORM:-linux/amd64}"
HELM="${HELM:-helm}"
DIST="${DIST:-dist}"
DIGESTS="${DIGESTS:-images/digests.yaml}"
REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)"
VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -n 1)"

fail() { echo "error: $1" >&2; exit 2; }

build() {
  image="$1"
  shift
  echo "▸ $image"
  docker buildx build --platform "$PLATFORM" --file "images/$image.Dockerfile" \
    --build-arg "VERSION=$VERSION" --build-arg "REVISION=$REVISION" "$@" .
}

build_here() {
  for image in index train evaluate; do
    build "$image" --load --tag "eosin/$image:$VERSION"
    docker image inspect --format "  eosin/$image:$VERSION {{.Size}} bytes" "eosin/$image:$VERSION"
  done
}

# Bytes that a node pulls: the layers and the configuration of the first image under a digest.
pulled_bytes() {
  inspect="docker buildx imagetools inspect --raw"
  first="$($inspect "$1" | tr -d ' \n' | sed -n 's/.*"manifests":\[{[^}]*"digest":"\(sha256:[0-9a-f]*\)".*/\1/p')"
  $inspect "${1%@*}@${first:-${1#*@}}" | tr -d ' \n' | tr ',{}' '\n' |
    awk -F : '$1 == "\"size\"" { sum += $2 } END { if (sum) print sum; else print "unknown" }'
}

# Build, push and print `  IMAGE: NAME@DIGEST` with its size. A bill of materials and provenance go along.
push_image() {
  name="$REGISTRY/$1"
  metadata="$DIST/$1.json"
  build "$1" --push --tag "$name:$VERSION" --build-arg "PYTHON_IMAGE=$base" \
    --sbom=true --provenance=mode=max --metadata-file "$metadata" >&2
  digest="$(sed -n 's/.*"containerimage.digest": *"\(sha256:[0-9a-f]*\)".*/\1/p' "$metadata" | head -n 1)"
  [ -n "$digest" ] || fail "buildx gave no digest for $name"
  echo "  # bytes to pull: $(pulled_bytes "$name@$digest")"
  echo "  $1: $name@$digest"
}

# The chart in the registry names the images by digest; the one in the repository names none.
push_chart() {
  rm -rf "$DIST/chart"
  mkdir -p "$DIST/chart"
  cp -R helm/eosin "$DIST/chart/eosin"
  for image in index train evaluate; do
    line="$(grep "^  $image: " "$DIGESTS")"
    sed -i.bak "s|^  $image: \"\"\$|$line|" "$DIST/chart/eosin/values.yaml"
    grep -qF "$line" "$DIST/chart/eosin/values.yaml" || fail "helm/eosin/values.yaml has no empty images.$image"
  done
  rm "$DIST/chart/eosin/values.yaml.bak"
  "$HELM" package "$DIST/chart/eosin" --version "$VERSION" --app-version "$VERSION" --destination "$DIST"
  "$HELM" push "$DIST/eosin-$VERSION.tgz" "oci://$REGISTRY/charts"
}

docker buildx version >/dev/null 2>&1 || fail "docker buildx is needed: https://docs.docker.com/go/buildx/"
if [ -z "$REGISTRY" ]; then
  build_here
  exit 0
fi
command -v "$HELM" >/dev/null || fail "helm is needed to publish the chart; HELM names it"
[ -z "$(git status --porcelain 2>/dev/null)" ] ||
  fail "the working tree has changes: commit them, so that the images can be traced to a revision"
mkdir -p "$DIST"
base="${PYTHON_TAG%:*}@$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$PYTHON_TAG")"
echo "▸ base image $base"
{
  echo "# Written by \`make publish\` at $REVISION on $base"
  echo "# The bill of materials of each: docker buildx imagetools inspect IMAGE --format '{{json .SBOM}}'"
  echo "images:"
} > "$DIGESTS.new"
for image in index train evaluate; do
  push_image "$image" >> "$DIGESTS.new"
done
mv "$DIGESTS.new" "$DIGESTS"
cat "$DIGESTS"
push_chart
echo "next: helm install eosin oci://$REGISTRY/charts/eosin --version $VERSION --namespace eosin --create-namespace"
