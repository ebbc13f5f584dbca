#!/bin/sh
# Does it run on a GPU: is it right, is it fast, does it learn? In under ten minutes; benchmarks/README.md has the rest.
#   benchmarks/gpu.sh OUT [--only NAME ...] [--budget SECONDS] [--list]
# GPU_REHEARSAL=1: the same on a CPU, in small.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here:$here/../src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m gpu "$@"
