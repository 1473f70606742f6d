#!/bin/sh
# A root file system of Debian with Python 3.11, for a base image that needs no container registry.
#   images/debian.sh OUT.tar
# MIRROR names the mirror of Debian's packages; without it this machine's own sources are taken, or deb.debian.org.
set -eu
SUITE=bookworm
OUT="${1:?name the archive to write}"
SOURCES=/etc/apt/sources.list.d/debian.sources

fail() { echo "error: $1" >&2; exit 2; }

command -v mmdebstrap >/dev/null || fail "mmdebstrap is needed for BASE=debian: apt install mmdebstrap"
if [ -z "${MIRROR:-}" ] && [ -r "$SOURCES" ]; then
  MIRROR="$(sed -n 's/^URIs: *\(http[^ ]*\/debian\)\/*$/\1/p' "$SOURCES" | head -n 1)"
fi
MIRROR="${MIRROR:-http://deb.debian.org/debian}"
# The keys of Debian's archive, wherever this distribution keeps them.
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$KEYRING" ] || fail "the keys of Debian's archive are needed: apt install debian-archive-keyring"
LINES="deb [signed-by=$KEYRING] $MIRROR $SUITE main
deb [signed-by=$KEYRING] $MIRROR $SUITE-updates main
deb [signed-by=$KEYRING] $(echo "$MIRROR" | sed 's|debian$|debian-security|') $SUITE-security main"
# No file is dated later than this: the same packages give the same layer, which the images' layers stand on.
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1700000000}"
export SOURCE_DATE_EPOCH
# A system that is merged from the start needs no usrmerge, which would bring Perl whole, 50 MB.
echo "$LINES" | mmdebstrap --quiet --format=tar --variant=minbase --include=python3,ca-certificates,usr-is-merged \
  --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
  --aptopt='Apt::Install-Recommends "false"' \
  --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/lintian/*' \
  --dpkgopt='path-exclude=/usr/lib/*/gconv/*' --dpkgopt='path-exclude=/usr/share/bash-completion/*' \
  --dpkgopt='path-exclude=/usr/share/zoneinfo/right/*' \
  --customize-hook='rm -rf "$1"/usr/lib/python3/dist-packages/__pycache__ "$1"/var/cache/apt/*.bin' \
  --customize-hook='rm -rf "$1"/usr/lib/python3.*/pydoc_data "$1"/usr/lib/python3.*/test' \
  "$SUITE" "$OUT.part" - >"$OUT.log" 2>&1 || { tail -n 30 "$OUT.log" >&2; fail "mmdebstrap failed"; }
rm "$OUT.log"
mv "$OUT.part" "$OUT"
