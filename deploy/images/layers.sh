# shellcheck shell=bash
# What scripts of images have in common that are made in layers on enoki/debian:12. They set `name`, the image's without
# `enoki/`, and read this with `.`.
#
# What is made stands under /var/cache/enoki/images, by the hash of all that it is made from, so that the second call is instant. What
# runs while an image is built runs in namespaces of its own, and ends with them.

here=$(cd "$(dirname "$0")" && pwd)
cache=${ENOKI_IMAGE_CACHE:-/var/cache/enoki/images}
# What a layer has of a file beside its bytes.
keep=(--numeric-owner --xattrs --xattrs-include=security.capability)
plain=(--format=posix --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime)

say() { printf '%s image: %s\n' "$name" "$*" >&2; }
die() { say "$*"; exit 1; }

# catalogue VERSION: its line in the image's catalogue, without the version.
catalogue() {
	local file=$here/$name.versions
	awk -v v="$1" '$1 == v { sub(/^[^ ]+ */, ""); print; found = 1 } END { exit !found }' "$file" ||
		die "no version \"$1\": $file has $(awk '/^[0-9]/ { printf "%s%s", sep, $1; sep = ", " }' "$file")"
}

[ "$(id -u)" = 0 ] || die "run this as root: packages are installed into a root of their own"
arch=$(dpkg --print-architecture)

# recipe PATH...: a hash of files, and of folders with all that is in them.
recipe() {
	(cd "$here" && find "$@" -type f -print0 | sort -z | xargs -0 sha256sum) | short
}
short() { sha256sum | cut -c1-16; }

# found FILE: prints its path and ends the script, if it is there.
found() {
	[ -s "$1" ] || return 0
	printf '%s\n' "$1"
	exit
}

# begin ARCHIVE: the one who may build now, with a folder for it, and Debian in its root. Or the end: it was built meanwhile.
begin() {
	mkdir -p "$cache/packages"
	exec 9>"$cache/.lock"
	flock -w 1800 9 || die "somebody else has been building an image for half an hour: see $cache/.lock"
	found "$1"
	rm -rf --one-file-system "$cache/.$name"-??????
	work=$(mktemp -d "$cache/.$name-XXXXXX")
	root=$work/root
	trap cleanup EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	mkdir "$root"
	unpack "$base"
	mark
}

cleanup() {
	local status=$?
	trap - EXIT
	[ "$status" = 0 ] || [ ! -e "$work/log" ] || { say "failed; the end of its log:"; tail -n 30 "$work/log" >&2; }
	rm -rf --one-file-system "$work"
	exit "$status"
}

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

# Times of change are counted in ticks of the kernel: nothing may fall into the mark's own.
mark() { touch "$work/mark"; sleep 0.1; }

# layer TAR: what was made or changed in the root since the mark.
layer() {
	(cd "$root" && find . -mindepth 1 -cnewer "$work/mark" -print0) |
		tar --create --file "$work/layer" --directory "$root" --null --no-recursion --files-from - --sort=name "${keep[@]}" "${plain[@]}"
	mv "$work/layer" "$1"
}

unpack() { tar --extract --file "$1" --directory "$root" "${keep[@]}"; }

# packages TAR PACKAGE...: the layer of Debian's packages, made unless it is there, and the user whom the engine's processes run as.
packages() {
	local tar=$1
	if [ -s "$tar" ]; then
		unpack "$tar"
		return
	fi
	say "installing ${*:2} on Debian 12 for $arch (about half a minute)"
	install -m 0755 "$here/install" "$root/install"
	within /install "$name" "${@:2}"
	rm "$root/install"
	layer "$tar"
}

# own: the starts of the engine's processes into the root, and what builds it there.
own() {
	mkdir -p "$root/opt/enoki"
	cp -r "$here/$name" "$root/opt/enoki/$name"
	# Of the starts some are programs, whatever mode the checkout has.
	chmod -R u=rwX,go=rX "$root/opt/enoki"
	find "$root/opt/enoki/$name" -type f -exec grep -lZ '^#!' {} + | xargs -0 chmod 0755
}

# pack VERSION ARCHIVE LAYER...: the image's archive, with the environment of the engine. Older builds of it go.
pack() {
	local version=$1 archive=$2 layers=() each
	for each in "${@:3}"; do
		ln -s "$each" "$work/${#layers[@]}.layer"
		layers+=("${#layers[@]}.layer")
	done
	for each in "${layers[@]}"; do
		sha256sum <"$work/$each" | cut -d' ' -f1
	done | jq -R '"sha256:" + .' | jq -s --arg arch "$arch" --arg by "deploy/images/$name.sh" --rawfile env "$here/$name/env" '{
		architecture: $arch, os: "linux", created: "1970-01-01T00:00:00Z",
		config: {Env: ($env | split("\n") | map(select(test("^[A-Z]"))))},
		rootfs: {type: "layers", diff_ids: .}, history: map({created: "1970-01-01T00:00:00Z", created_by: $by})
	}' >"$work/config.json"
	jq -n --arg name "enoki/$name:$version" --args '[{Config: "config.json", RepoTags: [$name], Layers: $ARGS.positional}]' \
		"${layers[@]}" >"$work/manifest.json"
	tar --create --file "$work/archive" --directory "$work" --dereference --owner=0 --group=0 --numeric-owner --mtime=@0 \
		"${plain[@]}" manifest.json config.json "${layers[@]}"
	mv "$work/archive" "$archive"
	find "$cache" -maxdepth 1 \( -name "$name-$version-$arch-*.tar" ! -path "$archive" -o \
		-name "$name-system-$arch-*.tar" ! -path "$system" \) -delete
	printf '%s\n' "$archive"
}
