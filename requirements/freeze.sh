#!/usr/bin/env bash
# Write both locks from an environment that works. Usage: requirements/freeze.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")"

pins() { # setuptools is left out by freeze, but torch and the editable install need it; local version tags name one index's build
  "$1" -m pip --disable-pip-version-check freeze --exclude-editable --exclude tokenformer
  "$1" -m pip --disable-pip-version-check freeze --all | grep -E '^setuptools=='
}

header="# Every package, exactly. Written by \`make lock\`; installed with --no-deps, because torchrec's metadata would draw in the
# CUDA build of fbgemm over the CPU one."
{
  echo "$header"
  pins "$1" | sed -E 's/\+cpu$//' | LC_ALL=C sort -f
} > cpu.lock
{
  echo "$header"
  echo "# For GPU machines: the CUDA builds of torch and fbgemm. torch is installed first, with the CUDA packages it names itself."
  grep -v '^#' cpu.lock | sed -E 's/^fbgemm[-_]gpu[-_]cpu==/fbgemm-gpu==/'
} > gpu.lock
