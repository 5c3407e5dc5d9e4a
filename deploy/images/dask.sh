#!/bin/bash
# Makes the image enoki/dask:VERSION for a version of dask.versions: enoki/debian:12, Debian's Python with NumPy, and Dask
# as PyPI has it, with the starts of its processes in /opt/enoki/dask.
#
# Prints the path of an image archive. Needs root, pip, a Debian archive and PyPI, no Docker.
set -euo pipefail
name=dask
. "$(dirname "$0")/layers.sh"

version=${1:-}
catalogue "$version" >/dev/null || exit 1
base=$("$here/debian.sh") || die "enoki/debian:12, which it is built on, could not be built: see above"
debs=(python3 python3-numpy)
system=$cache/dask-system-$arch-$(printf '%s\n' "${base##*/}" "${debs[@]}" "$(recipe install)" | short).tar
archive=$cache/dask-$version-$arch-$(printf '%s\n' "$version" "${system##*/}" "$(recipe layers.sh dask.sh dask)" | short).tar
found "$archive"
pip=$(command -v pip3) || die "pip3 is missing: apt-get install python3-pip"
begin "$archive"
packages "$system" "${debs[@]}"

say "making Dask $version an image"
mark
own
# For the Python of the image, whatever this machine has.
"$pip" install --quiet --no-cache-dir --no-deps --require-hashes --only-binary :all: --python-version 3.11 --implementation cp \
	--no-compile --requirement "$here/dask/wheels/$version.txt" --target "$root/opt/dask" >>"$work/log" 2>&1 9>&- ||
	die "pip could not fetch Dask $version from PyPI"
within --net /opt/enoki/dask/build/dask "$version"
rm -rf "$root"/opt/enoki/dask/{build,wheels}
layer "$work/dask.layer"
pack "$version" "$archive" "$base" "$system" "$work/dask.layer"
