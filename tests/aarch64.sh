#!/bin/sh
# Runs the tests of the kernels for 64-bit ARM on another processor, emulated: sh tests/aarch64.sh [FOLDER [PYTEST ARGUMENTS]]
# It needs Debian with g++-aarch64-linux-gnu and qemu-user, the project's .venv, and `dpkg --add-architecture arm64`
# followed by `apt-get update`; it installs nothing: everything lies in FOLDER (1.2 GB).
set -eu
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-build/aarch64}")
[ $# -gt 0 ] && shift
host=$PWD/.venv/bin/python
mkdir -p "$folder/packages" "$folder/wheels" "$folder/root/proc" "$folder/site"

# An interpreter of the same version as Debian's, and its libraries.
if [ ! -e "$folder/root/usr/bin/python3.11" ]; then
  (cd "$folder/packages" && apt-get download -q python3.11-minimal:arm64 libpython3.11-minimal:arm64 \
    libpython3.11-stdlib:arm64 libc6:arm64 libgcc-s1:arm64 libstdc++6:arm64 libgomp1:arm64 zlib1g:arm64 libssl3:arm64 \
    libffi8:arm64 libexpat1:arm64 libbz2-1.0:arm64 liblzma5:arm64 libsqlite3-0:arm64 libuuid1:arm64 libncursesw6:arm64 \
    libtinfo6:arm64 libreadline8:arm64)
  for package in "$folder"/packages/*.deb; do dpkg -x "$package" "$folder/root"; done
fi
# The newest PyTorch for ARM that is a build for the CPU alone on the package index.
if [ ! -d "$folder/site/hypothesis" ]; then
  "$host" -m pip download -q -d "$folder/wheels" --no-deps --only-binary=:all: --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
    torch==2.10.0 numpy==2.4.6 opencv-python-headless==5.0.0.93 PyYAML pytest pluggy iniconfig packaging pygments \
    hypothesis sortedcontainers typing_extensions sympy mpmath networkx jinja2 markupsafe fsspec filelock
  for wheel in "$folder"/wheels/*.whl; do "$host" -m zipfile -e "$wheel" "$folder/site"; done
fi
# What /proc/cpuinfo says on a processor with both dot products.
printf 'processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp i8mm bf16\n' > "$folder/root/proc/cpuinfo"

# The libraries are compiled before, as a compiler started by an emulated process may never end.
PYTHONPATH=$PWD CXX=aarch64-linux-gnu-g++ XDG_CACHE_HOME=$folder/cache "$host" - <<'BUILD'
import platform

platform.machine = lambda: "aarch64"
from yolox.kernels.build import built_library
from yolox.kernels.variants import machine_variants

for variant in machine_variants():
    print(built_library(variant))
BUILD

[ $# -gt 0 ] || set -- -q -p no:cacheprovider tests/kernels/int8/test_kernels.py tests/kernels/int8/test_packing.py \
  tests/kernels/int8/test_executable.py tests/kernels/int8/test_hostile_programs.py \
  tests/kernels/int8/test_native_settings.py \
  tests/kernels/training/test_kernels_of_layers.py tests/kernels/training/test_deferred.py
exec qemu-aarch64 -cpu max -L "$folder/root" -E PYTHONPATH="$PWD:$folder/site" -E XDG_CACHE_HOME="$folder/cache" \
  "$folder/root/usr/bin/python3.11" -m pytest "$@"
