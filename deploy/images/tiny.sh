#!/bin/bash
# Makes the tiny base image: one static busybox and the few files that make it a system.
#
# Prints the path of a rootfs tar, cached under /var/cache/enoki/images by the bytes that go into it.
# The same busybox gives the same bytes. Takes no network and no Docker.
set -euo pipefail

cache=${ENOKI_IMAGE_CACHE:-/var/cache/enoki/images}
die() { printf 'tiny image: %s\n' "$*" >&2; exit 1; }

busybox=$(PATH="$PATH:/usr/sbin:/sbin" command -v busybox) || die "busybox is missing: run deploy/setup.sh"
! LC_ALL=C ldd "$busybox" >/dev/null 2>&1 || die "$busybox is not static: install busybox-static"

key=$(cat "$0" "$busybox" | sha256sum | cut -c1-16)
tar=$cache/tiny-$key.tar
if [ -s "$tar" ]; then
	printf '%s\n' "$tar"
	exit
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/.tiny-XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
root=$work/root

mkdir -p "$root"/{bin,dev,etc,home,mnt,proc,root,run,srv,sys,tmp,usr/bin,usr/sbin,sbin,var/log,var/tmp}
chmod 0755 "$root" "$root"/*
chmod 0700 "$root/root"
chmod 1777 "$root/tmp" "$root/var/tmp"
install -m 0755 "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list); do
	[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
printf 'root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n' >"$root/etc/shadow"
chmod 0640 "$root/etc/shadow"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
printf 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n' >"$root/etc/profile"
printf 'NAME="Enoki tiny"\nID=enoki-tiny\nVERSION_ID=1\nPRETTY_NAME="Enoki tiny 1"\n' >"$root/etc/os-release"

tar --create --file "$work/tar" --directory "$root" --sort=name --numeric-owner --owner=0 --group=0 --mtime=@0 \
	--format=gnu .
mv "$work/tar" "$tar"
printf '%s\n' "$tar"
