#!/bin/bash
# Makes the base image enoki/debian:12: Debian's minimal system with the tools that people expect on a machine.
#
# Prints the path of a rootfs tar. It is cached under /var/cache/enoki/images by the hash of this script and of
# the archive it is built from, so the second call is instant. Needs root and a Debian archive, no Docker.
# apt inside reads the archive that apt reads on the building host.
#
# Built beside and renamed: there is the whole tar or none. debootstrap runs in mount and pid namespaces of its
# own, so whatever it leaves mounted or running is gone with it, also after kill -9.
set -euo pipefail

release=bookworm
cache=${ENOKI_IMAGE_CACHE:-/var/cache/enoki/images}
include=(
	sudo curl ca-certificates procps iproute2 iputils-ping less nano vim-tiny cron busybox
	# Without Python and its libraries: a debugger that costs 10 MB.
	gdb-minimal
)

say() { printf 'debian image: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
[ "$(id -u)" = 0 ] || die "run this as root: debootstrap makes device nodes and changes owners"
command -v debootstrap >/dev/null || PATH=$PATH:/usr/sbin
command -v debootstrap >/dev/null || die "debootstrap is missing: run deploy/setup.sh"
arch=$(dpkg --print-architecture)

# "URI RELEASE COMPONENT" a line: what the host's apt reads for this release, whatever files say so. Other people's
# archives are not part of a base image; apt knows the origin once it has fetched an archive's lists.
archives() {
	# shellcheck disable=SC2016  # the $(...) are apt's own
	apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)' \
		'Created-By: Packages' "Architecture: $arch" 2>/dev/null |
		awk -v r="$release" '($2 == r || $2 == r "-updates" || $2 == r "-security") && ($4 == "Debian" || $4 == "$(ORIGIN)") &&
			$3 ~ /^(main|contrib|non-free|non-free-firmware)$/ && !seen[$1 $2 $3]++ { print $1, $2, $3 }'
}

# deb822 stanzas, one for each archive and suite.
sources() {
	local lines
	lines=$(archives)
	if [ -z "$lines" ]; then
		lines="http://deb.debian.org/debian $release main
http://deb.debian.org/debian $release-updates main
http://deb.debian.org/debian-security $release-security main"
	fi
	awk '{ key = $1 "\nSuites: " $2; if (!(key in parts)) order[++n] = key; parts[key] = parts[key] " " $3 }
		END { for (i = 1; i <= n; i++)
			printf "Types: deb\nURIs: %s\nComponents:%s\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n",
				order[i], parts[order[i]] }' <<<"$lines"
}

# How the host's apt reaches its archive: proxies, and an archive frozen at a date, whose Release has expired.
settings() {
	apt-config dump | grep -E '^Acquire::(Check-Valid-Until|Check-Date|Retries|ForceIPv[46]|https?::Proxy)' || true
}

mirror() {
	local found
	found=$(archives | awk -v r="$release" '$2 == r && $3 == "main" { print $1; exit }')
	printf '%s\n' "${found:-http://deb.debian.org/debian}"
}

key=$({ cat "$0"; sources; settings; printf '%s\n' "$arch"; } | sha256sum | cut -c1-16)
tar=$cache/debian-12-$arch-$key.tar
if [ -s "$tar" ]; then
	printf '%s\n' "$tar"
	exit
fi

mkdir -p "$cache/packages"
exec 9>"$cache/.lock"
flock -w 900 9 || die "somebody else has been building an image for 15 minutes: see $cache/.lock"
# The one who held the lock may have built it.
if [ -s "$tar" ]; then
	printf '%s\n' "$tar"
	exit
fi
rm -rf --one-file-system "$cache"/.debian-??????

work=$(mktemp -d "$cache/.debian-XXXXXX")
cleanup() {
	local status=$?
	trap - EXIT
	[ "$status" = 0 ] || [ ! -e "$work/log" ] || { say "failed; the end of its log:"; tail -n 20 "$work/log" >&2; }
	rm -rf --one-file-system "$work"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
root=$work/root
mkdir "$root"
# A temporary folder is 0700, and this one becomes the root of every instance.
chmod 0755 "$root"

say "building Debian 12 for $arch (about a minute)"
# Fd 9 is closed for the children, so that no straggler can hold the lock.
LC_ALL=C DEBIAN_FRONTEND=noninteractive unshare --mount --pid --fork --kill-child --propagation private \
	debootstrap --variant=minbase --arch="$arch" --cache-dir="$cache/packages" --force-check-gpg \
	--keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
	--include="$(IFS=,; echo "${include[*]}")" "$release" "$root" "$(mirror)" >"$work/log" 2>&1 9>&-

say "making it a base image"
rm -f "$root/etc/apt/sources.list"
sources >"$root/etc/apt/sources.list.d/debian.sources"
settings >"$root/etc/apt/apt.conf.d/90enoki"
# A base image has no memory: its archives and lists are fetched again on the first `apt-get update`.
cat >>"$root/etc/apt/apt.conf.d/90enoki" <<'CONF'
Acquire::Languages "none";
CONF
printf 'LANG=C.UTF-8\n' | tee "$root/etc/default/locale" >"$root/etc/environment"

# What is one machine's own and what differs from build to build.
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/* \
	"$root"/var/log/*.log "$root"/var/log/apt/* "$root"/var/cache/ldconfig/aux-cache "$root"/var/cache/debconf/*-old \
	"$root"/var/lib/dpkg/*-old "$root"/etc/{passwd,group,shadow,gshadow,subuid,subgid}- "$root"/etc/machine-id \
	"$root"/var/lib/dbus/machine-id "$root"/etc/ssh/ssh_host_* "$root"/var/lib/systemd/random-seed "$root"/tmp/* \
	"$root"/debootstrap
: >"$root/etc/hostname"
: >"$root/etc/resolv.conf"
sed -i -E 's/^([^:]*:[^:]*):[0-9]+:/\1:19000:/' "$root/etc/shadow"
find "$root/dev" -mindepth 1 -delete

tar --create --file "$work/tar" --directory "$root" --sort=name --numeric-owner --mtime=@0 --format=posix \
	--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
	--xattrs --xattrs-include=security.capability .
mv "$work/tar" "$tar"
# Older builds of the same image are of no use to anybody.
find "$cache" -maxdepth 1 -name "debian-12-$arch-*.tar" ! -path "$tar" -delete
printf '%s\n' "$tar"
