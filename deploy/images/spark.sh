#!/bin/bash
# Makes the image enoki/spark:VERSION for a version of spark.versions: enoki/debian:12, Debian's Java 17 and Python,
# and Spark as PyPI has it, with the starts of its processes in /opt/enoki/spark.
#
# Prints the path of an image archive. Needs root, pip, a Debian archive and PyPI, no Docker.
#
# Three layers: Debian's as it is, Java and Python, Spark. The first two are the same bytes for every version, so that
# they are kept, sent and unpacked once.
set -euo pipefail
name=spark
. "$(dirname "$0")/layers.sh"

version=${1:-}
sum=$(catalogue "$version") || exit 1
base=$("$here/debian.sh") || die "enoki/debian:12, which it is built on, could not be built: see above"
debs=(openjdk-17-jre-headless python3 python3-numpy)
system=$cache/spark-system-$arch-$(printf '%s\n' "${base##*/}" "${debs[@]}" "$(recipe install)" | short).tar
archive=$cache/spark-$version-$arch-$(printf '%s\n' "$version" "$sum" "${system##*/}" "$(recipe layers.sh spark.sh spark)" | short).tar
found "$archive"
pip=$(command -v pip3) || die "pip3 is missing: apt-get install python3-pip"
begin "$archive"
packages "$system" "${debs[@]}"

source=$cache/packages/pyspark-$version.tar.gz
if ! sha256sum --status --check - <<<"$sum  $source" 2>/dev/null; then
	say "fetching Spark $version (300 to 450 MB)"
	# pip checks the sum, too: what is not what the catalogue says is never kept.
	printf 'pyspark==%s --hash=sha256:%s\n' "$version" "$sum" >"$work/wanted"
	"$pip" download --quiet --no-cache-dir --no-deps --no-binary :all: --require-hashes --requirement "$work/wanted" \
		--dest "$work/fetched" >>"$work/log" 2>&1 9>&- || die "pip could not fetch pyspark $version from PyPI"
	mv "$work/fetched/pyspark-$version.tar.gz" "$source"
fi

say "making Spark $version an image (about five minutes: it is run once, and what it loaded is kept ready)"
mark
mkdir -p "$work/source"
tar --extract --gzip --file "$source" --directory "$work/source" --strip-components=1 --no-same-owner
own
mv "$work/source" "$root/opt/source"
within --net /opt/enoki/spark/build/spark
rm -rf "$root/opt/source" "$root/opt/enoki/spark/build"
layer "$work/spark.layer"
pack "$version" "$archive" "$base" "$system" "$work/spark.layer"
