#!/usr/bin/env bash
# Build CuPy's CPU wheel from its source distribution, check it, and put it into a folder:
#   bash build.sh FOLDER
# Needs Python 3.11 with venv (or PYTHON=...), g++ 12 or newer, binutils and a package index.
# One job, five to ten minutes.
set -euo pipefail

version=14.2.0
sha256=cfed725e612178cfbdbf62f4a3a598b60edecbbca718c0d4580c21a16ae4a62c
out=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d -t cupy_cpu_build_XXXXXX)
trap 'rm -rf "$work"' EXIT

export CUPY_INSTALL_USE_STUB=1 CUPY_NUM_BUILD_JOBS=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export CFLAGS="-Os -g0 -w -DNDEBUG" CXXFLAGS="-Os -g0 -w -DNDEBUG"

"${PYTHON:-python3.11}" -m venv "$work/build-env"
python="$work/build-env/bin/python"
"$python" -m pip install -q "setuptools>=77" wheel "Cython>=3.2,<3.3" "numpy>=2,<2.6"
"$python" -m pip download -q --no-deps --no-binary :all: --no-build-isolation \
  "cupy==$version" -d "$work"
echo "$sha256  $work/cupy-$version.tar.gz" | sha256sum -c --quiet -

tar -C "$work" -xf "$work/cupy-$version.tar.gz"
source="$work/cupy-$version"
"$python" "$here/patches/patch_source.py" "$source"
(cd "$source" && nice "$python" setup.py -q build_ext --inplace) > "$work/build.log" 2>&1 || {
  tail -30 "$work/build.log"
  exit 1
}
"$python" "$here/patches/assemble_wheel.py" "$source" "$work/dist"

"${PYTHON:-python3.11}" -m venv "$work/check-env"
"$work/check-env/bin/python" -m pip install -q scipy "$work"/dist/*.whl
(cd "$work" && env -i PATH="$PATH" HOME="$work" "$work/check-env/bin/python" "$here/check.py")
cp "$work"/dist/*.whl "$out/"
echo "built: $(ls "$out"/cupy-"$version"+cpu-*.whl)"
