#!/usr/bin/env bash
# Fetches what a bare GPU machine without a network lacks (CPython 3.12, x86-64, CUDA 13) into a folder.
set -euo pipefail
folder=${1:?usage: gpu_wheels.sh FOLDER}

platforms=()
for glibc in 35 34 31 28 27 24 17; do
  platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

rm -rf "$folder"
mkdir -p "$folder"
# What fastshape and its tests need beyond a torch image, then the peers of the benchmarks.
PIP_CONSTRAINT='' python3 -m pip download --quiet --no-deps --only-binary=:all: \
  --python-version 3.12 --implementation cp "${platforms[@]}" --dest "$folder" \
  'trimesh>=4' manifold3d 'libigl>=2.6' \
  fpsample torch-fps torch-quickfps-cu130

size=$(du -sm "$folder" | cut -f1)
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels, $size MiB"
if ((size >= 60)); then
  echo "more than 60 MiB: too much to carry" >&2
  exit 1
fi
