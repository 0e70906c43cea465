#!/usr/bin/env bash
# Write requirements/{cpu,gpu}.lock: resolve the .in files in a fresh environment and freeze what came of it.
# pip's own settings (index, proxy, wheel folders) decide where packages come from; the index has to offer torch's CPU build.
# Usage: make lock, or requirements/lock.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")"

fresh="$(mktemp -d)"
trap 'rm -rf "$fresh"' EXIT
"${1:-python3.11}" -m venv "$fresh"
pip=("$fresh/bin/python" -m pip --disable-pip-version-check)

"${pip[@]}" install --upgrade setuptools
"${pip[@]}" install "$(grep -E '^torch==' base.in)" # first and alone, so that nothing below draws in another build
"${pip[@]}" install -r base.in -r dev.in
"${pip[@]}" install --no-deps -r nodeps.in

./freeze.sh "$fresh/bin/python"
