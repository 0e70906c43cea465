#!/bin/sh
# targets.sh RUNS OUT [SECONDS]: keeps OUT/NAME.json a copy of RUNS/NAME/prometheus_targets.json, looking every SECONDS
# (5; 0 = once). Prometheus finds what to watch in one folder of files, and a run has a folder of its own.
# POSIX sh and nothing else: it also runs in Prometheus' own image (docker/compose.yaml).
set -eu
runs=$1 out=$2 seconds=${3:-5}

mkdir -p "$out"
while :; do
  for known in "$out"/*.json; do
    name=$(basename "$known" .json)
    [ -e "$runs/$name/prometheus_targets.json" ] || rm -f "$known"
  done
  for found in "$runs"/*/prometheus_targets.json; do
    [ -e "$found" ] || continue
    name=$(basename "$(dirname "$found")")
    cmp -s "$found" "$out/$name.json" && continue
    # Whole or not at all: Prometheus may look at any moment. A run that ends in between takes its file away.
    { cp "$found" "$out/.$name" && mv "$out/.$name" "$out/$name.json"; } 2> /dev/null || rm -f "$out/.$name"
  done
  [ "$seconds" != 0 ] || exit 0
  sleep "$seconds"
done
