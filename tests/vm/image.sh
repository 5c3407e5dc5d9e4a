#!/bin/bash
# Makes the machine that the VM test boots: Debian 12 with its own kernel, systemd, Docker and etcd.
#
# Prints a folder that holds vmlinuz, initrd.img and root.ext4. It is cached under /var/cache/enoki/vm by the hash of
# this script and of the archive it is built from; older builds are removed, so the cache holds one machine (under 2 GB).
# What is tested does not lie in it but on a second disk (payload.sh): a new binary or test needs no new machine.
#
# Built beside and renamed. debootstrap runs in mount and pid namespaces of its own, so that whatever it leaves mounted
# or running is gone with it, also after kill -9.
set -euo pipefail

release=bookworm
cache=${ENOKI_VM_CACHE:-/var/cache/enoki/vm}
include=(
	linux-image-cloud-amd64 initramfs-tools systemd-sysv udev dbus kmod
	# What deploy/setup.sh installs for a host.
	docker.io apparmor containerd runc etcd-server etcd-client docker-registry iproute2 iptables nftables e2fsprogs xfsprogs procps curl jq
	iputils-ping ca-certificates
)

say() { printf 'vm image: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
[ "$(id -u)" = 0 ] || die "run this as root: debootstrap makes device nodes and changes owners"
PATH=$PATH:/usr/sbin:/sbin

# The archive that the apt of this machine reads.
mirror() {
	local found
	# shellcheck disable=SC2016  # the $(...) are apt's own
	found=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
		awk -v r="$release" '$2 == r && $3 == "main" { print $1; exit }')
	printf '%s\n' "${found:-http://deb.debian.org/debian}"
}

key=$({ cat "$0"; mirror; } | sha256sum | cut -c1-16)
machine=$cache/debian-12-$key
if [ ! -e "$machine/root.ext4" ]; then
	mkdir -p "$cache/packages"
	exec 9>"$cache/.lock"
	flock -w 900 9 || die "somebody else has been building a machine for 15 minutes: see $cache/.lock"
fi
# Also the one who held the lock may have built it.
if [ -e "$machine/root.ext4" ]; then
	printf '%s\n' "$machine"
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
chmod 0755 "$root"

say "building a Debian 12 with systemd and Docker (about two minutes)"
LC_ALL=C DEBIAN_FRONTEND=noninteractive unshare --mount --pid --fork --kill-child --propagation private \
	debootstrap --variant=minbase --cache-dir="$cache/packages" --force-check-gpg \
	--keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
	--include="$(IFS=,; echo "${include[*]}")" "$release" "$root" "$(mirror)" >"$work/log" 2>&1 9>&-

say "making it a machine"
printf 'enoki-vm\n' >"$root/etc/hostname"
printf '127.0.0.1 localhost enoki-vm\n' >"$root/etc/hosts"
printf '/dev/vda / ext4 rw 0 1\n' >"$root/etc/fstab"
# Debian starts its own etcd on 2379, where ours belongs, and a registry for everybody: masked as deploy/setup.sh does it.
for unit in etcd docker-registry; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
done

# Each boot runs what the second disk says, once the machine is up. The second serial port is the test's alone.
cat >"$root/etc/systemd/system/vm-test.service" <<'UNIT'
[Unit]
Description=The test on the second disk
After=multi-user.target
FailureAction=poweroff-force

[Service]
Type=exec
ExecStartPre=mkdir -p /payload
ExecStartPre=mount -o ro /dev/vdb /payload
ExecStart=/payload/guest/run.sh
StandardOutput=file:/dev/ttyS1
StandardError=inherit
UNIT
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../vm-test.service "$root/etc/systemd/system/multi-user.target.wants/vm-test.service"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*

mv "$root"/boot/vmlinuz-* "$work/vmlinuz"
mv "$root"/boot/initrd.img-* "$work/initrd.img"
mkfs.ext4 -q -d "$root" "$work/root.ext4" 6G >>"$work/log" 2>&1
rm -rf --one-file-system "$root" "$work/log"

# Older builds are of no use to anybody, and the packages have done their duty.
rm -rf --one-file-system "$cache"/debian-12-* "$cache/packages"
mv "$work" "$machine"
printf '%s\n' "$machine"
