#!/bin/bash
# Makes the image enoki/spark:VERSION for a version of spark.versions: enoki/debian:12, Debian's Java 17 and Python,
# and Spark as PyPI has it, with the starts of its processes in /opt/enoki/spark.
#
# Prints the path of an image archive. It is cached under /var/cache/enoki/images by the hash of all that it is made
# from, so the second call is instant. Needs root, pip, a Debian archive and PyPI, no Docker.
#
# Three layers: Debian's as it is, Java and Python, Spark. The first two are the same bytes for every version, so that
# they are kept, sent and unpacked once. What runs while it is built runs in namespaces of its own, and ends with them.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${ENOKI_IMAGE_CACHE:-/var/cache/enoki/images}
version=${1:-}

say() { printf 'spark image: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
sum=$(awk -v v="$version" '$1 == v { print $2 }' "$here/spark.versions")
[ -n "$sum" ] || die "no version \"$version\": $here/spark.versions has $(awk '/^[0-9]/ { printf "%s%s", sep, $1; sep = ", " }' "$here/spark.versions")"
[ "$(id -u)" = 0 ] || die "run this as root: packages are installed into a root of their own"
arch=$(dpkg --print-architecture)

base=$("$here/debian.sh") || die "enoki/debian:12, which it is built on, could not be built: see above"
system_key=$({ printf '%s\n' "${base##*/}"; cat "$0" "$here/spark/build/system"; } | sha256sum | cut -c1-16)
system=$cache/spark-system-$arch-$system_key.tar
# The recipe is this script and the folder beside it.
key=$({ printf '%s %s %s\n' "$version" "$sum" "$system_key"; cd "$here" && find spark -type f -print0 | sort -z | xargs -0 sha256sum; } |
	sha256sum | cut -c1-16)
archive=$cache/spark-$version-$arch-$key.tar
if [ -s "$archive" ]; then
	printf '%s\n' "$archive"
	exit
fi
pip=$(command -v pip3) || die "pip3 is missing: apt-get install python3-pip"

mkdir -p "$cache/packages"
exec 9>"$cache/.lock"
flock -w 1800 9 || die "somebody else has been building an image for half an hour: see $cache/.lock"
# The one who held the lock may have built it.
if [ -s "$archive" ]; then
	printf '%s\n' "$archive"
	exit
fi
rm -rf --one-file-system "$cache"/.spark-??????

work=$(mktemp -d "$cache/.spark-XXXXXX")
cleanup() {
	local status=$?
	trap - EXIT
	[ "$status" = 0 ] || [ ! -e "$work/log" ] || { say "failed; the end of its log:"; tail -n 30 "$work/log" >&2; }
	rm -rf --one-file-system "$work"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
root=$work/root

# within [--net] PROGRAM...: runs it in the root, with what programs expect of a machine mounted, in namespaces that
# end with it. With --net there is no network but loopback.
within() {
	local apart=(--mount --pid --uts --ipc --fork --kill-child --propagation private)
	[ "$1" != --net ] || { apart+=(--net); shift; }
	# Fd 9 is closed for the children, so that no straggler can hold the lock.
	# shellcheck disable=SC2016  # its own variables
	unshare "${apart[@]}" bash -euc '
		root=$1; shift
		mount -t proc proc "$root/proc"
		mount -t tmpfs -o mode=0755 dev "$root/dev"
		for device in null zero full random urandom; do
			: >"$root/dev/$device"
			mount --bind "/dev/$device" "$root/dev/$device"
		done
		ln -s /proc/self/fd "$root/dev/fd"
		mkdir -m 1777 "$root/dev/shm"
		mount -t tmpfs tmp "$root/tmp"
		mount --bind "$(readlink -f /etc/resolv.conf)" "$root/etc/resolv.conf"
		hostname localhost
		ip link set lo up 2>/dev/null || true
		exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 chroot "$root" "$@"
	' within "$root" "$@" >>"$work/log" 2>&1 9>&-
}

# layer TAR: what was made or changed in the root since `mark` was touched.
layer() {
	(cd "$root" && find . -mindepth 1 -cnewer "$work/mark" -print0) |
		tar --create --file "$1" --directory "$root" --null --no-recursion --files-from - --sort=name --numeric-owner \
			--format=posix --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
			--xattrs --xattrs-include=security.capability
}

# Times of change are counted in ticks of the kernel: nothing may fall into the mark's own.
mark() { touch "$work/mark"; sleep 0.1; }

mkdir "$root"
tar --extract --file "$base" --directory "$root" --numeric-owner --xattrs --xattrs-include=security.capability
mark
if [ -s "$system" ]; then
	tar --extract --file "$system" --directory "$root" --numeric-owner --xattrs --xattrs-include=security.capability
else
	say "installing Java and Python on Debian 12 for $arch (about half a minute)"
	install -m 0755 "$here/spark/build/system" "$root/install"
	within /install
	rm "$root/install"
	layer "$work/system"
	mv "$work/system" "$system"
fi

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
mkdir -p "$work/source" "$root/opt/enoki"
tar --extract --gzip --file "$source" --directory "$work/source" --strip-components=1 --no-same-owner
cp -r "$here/spark" "$root/opt/enoki/spark"
# Of the starts some are programs, whatever mode the checkout has.
chmod -R u=rwX,go=rX "$root/opt/enoki"
chmod 0755 "$root"/opt/enoki/spark/{master,worker,driver,history,connect} "$root"/opt/enoki/spark/build/*
mv "$work/source" "$root/opt/source"
within --net /opt/enoki/spark/build/spark
rm -rf "$root/opt/source" "$root/opt/enoki/spark/build"
layer "$work/spark.layer"

ln -s "$base" "$work/debian.layer"
ln -s "$system" "$work/system.layer"
layers=(debian.layer system.layer spark.layer)
for each in "${layers[@]}"; do
	sha256sum <"$work/$each" | cut -d' ' -f1
done | jq -R '"sha256:" + .' | jq -s --arg arch "$arch" --rawfile env "$here/spark/env" '{
	architecture: $arch, os: "linux", created: "1970-01-01T00:00:00Z",
	config: {Env: ($env | split("\n") | map(select(test("^[A-Z]"))))},
	rootfs: {type: "layers", diff_ids: .}, history: map({created: "1970-01-01T00:00:00Z", created_by: "deploy/images/spark.sh"})
}' >"$work/config.json"
jq -n --arg name "enoki/spark:$version" --args '[{Config: "config.json", RepoTags: [$name], Layers: $ARGS.positional}]' \
	"${layers[@]}" >"$work/manifest.json"
tar --create --file "$work/archive" --directory "$work" --dereference --owner=0 --group=0 --numeric-owner --mtime=@0 --format=posix \
	--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime manifest.json config.json "${layers[@]}"
mv "$work/archive" "$archive"
# Older builds of the same image are of no use to anybody.
find "$cache" -maxdepth 1 \( -name "spark-$version-$arch-*.tar" ! -path "$archive" -o -name "spark-system-$arch-*.tar" ! -path "$system" \) -delete
printf '%s\n' "$archive"
