#!/bin/bash
# Gives a running cloud the base images enoki/tiny:1 and enoki/debian:12, or with the argument `spark` or `dask` an
# enoki/ENGINE:VERSION for each version of the catalogue, building what is not built yet. An image that is there with the same
# bytes is left alone, so that calling this again costs nothing.
set -euo pipefail
cd "$(dirname "$0")"

die() { printf 'images: %s\n' "$*" >&2; exit 1; }

# has NAME SHA256: whether the cloud has an image of that name made of these bytes.
has() {
	enoki image list -o json | jq -e --arg name "$1" --arg sum "$2" '
		[.items[] | [.. | strings]] | any(index($name) != null and any(endswith($sum)))' >/dev/null
}

# bring NAME SCRIPT [ARGUMENT]
bring() {
	local tar sum
	tar=$("${@:2}") || die "$1 could not be built: see above"
	sum=$(sha256sum <"$tar" | cut -d' ' -f1)
	if has "$1" "$sum"; then
		return
	fi
	enoki image import "$1" "$tar" >&2 || die "$1 could not be imported from $tar: see above"
}

case "${1:-}" in
'')
	bring enoki/tiny:1 images/tiny.sh
	bring enoki/debian:12 images/debian.sh
	;;
spark | dask)
	for version in $(awk '/^[0-9]/ { print $1 }' "images/$1.versions"); do
		bring "enoki/$1:$version" "images/$1.sh" "$version"
	done
	;;
*)
	die "no images called \"$1\": nothing for the base images, or spark, or dask"
	;;
esac
