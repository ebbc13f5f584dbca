#!/bin/sh
# Does it run on a GPU: is it right, is it fast, does it learn? In under ten minutes; benchmarks/README.md has the rest.
#   benchmarks/gpu.sh OUT [--only NAME ...] [--budget SECONDS]
#   benchmarks/gpu.sh --list
# GPU_REHEARSAL=1: the same on a CPU, in small. GPU_PACK=FOLDER: with what gpu_pack.sh has packed, for a machine without
# a network. GPU_MODEL=FOLDER: the language model that is trained, where GPU_PACK does not bring it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
PYTHONPATH="$here:$here/../src${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
# pieces run in another folder
absolute() {
	(cd "$1" 2>/dev/null && pwd) || { echo "gpu.sh: $2 = '$1': no such folder" >&2; exit 2; }
}
if [ -n "${GPU_PACK:-}" ]; then
	GPU_PACK=$(absolute "$GPU_PACK" GPU_PACK)
	"$python" -m gpu.unpack "$GPU_PACK"
	PYTHONPATH="$GPU_PACK/site:$PYTHONPATH"
	GPU_MODEL=${GPU_MODEL:-$GPU_PACK/model}
fi
if [ -n "${GPU_MODEL:-}" ]; then
	GPU_MODEL=$(absolute "$GPU_MODEL" GPU_MODEL)
	export GPU_MODEL
fi
exec "$python" -m gpu "$@"
