#!/usr/bin/env bash
# Unpacks one Debian package into a folder, without installing it: today's Prometheus, vmagent and node_exporter for the tests.
#
#   debian.sh PACKAGE SUITE DIR     e.g. debian.sh prometheus sid ~/.cache/fletch-services/prometheus
#
# The mirror is the one this machine's apt already uses; its package lists stay untouched. A second call finds the folder and does nothing.
set -euo pipefail

package=${1:?which package?} suite=${2:?which suite, e.g. sid?} dir=$(realpath -m "${3:?into which folder?}")
[ -e "$dir/.unpacked-$package" ] && exit 0

find_mirror() {
  { cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2> /dev/null || true; } |
    sed -nE 's#^(URIs:|deb)[[:space:]]+(\[[^]]*\][[:space:]]+)?([a-z]+://[^[:space:]]+/debian)/?([[:space:]].*)?$#\3#p' | head -n 1
}
mirror=$(find_mirror)
if [ -z "$mirror" ]; then
  echo "debian.sh: no Debian mirror in this machine's apt sources; install '$package' yourself and put it on the PATH" >&2
  exit 1
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch"/lists/partial "$scratch"/cache/archives/partial "$scratch"/empty "$dir"
echo "deb $mirror $suite main" > "$scratch/sources.list"
options=(-o "Dir::Etc::SourceList=$scratch/sources.list" -o "Dir::Etc::SourceParts=$scratch/empty"
  -o "Dir::State::Lists=$scratch/lists" -o "Dir::Cache=$scratch/cache" -o APT::Sandbox::User=root)
apt-get -qq "${options[@]}" update
(cd "$scratch" && apt-get -qq "${options[@]}" download "$package")
dpkg-deb --extract "$scratch/$package"_*.deb "$dir"
touch "$dir/.unpacked-$package"
