#!/bin/bash
# Installs what the VM test needs beyond deploy/setup.sh. With nothing missing it does nothing and needs no root.
set -euo pipefail

have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }
missing=()
have qemu-system-x86_64 || missing+=(qemu-system-x86)
have debootstrap || missing+=(debootstrap)
have mkfs.ext4 || missing+=(e2fsprogs)
[ ${#missing[@]} = 0 ] && exit

[ "$(id -u)" = 0 ] || { printf 'vm setup: missing: %s. Run this as root.\n' "${missing[*]}" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get -q -y update >&2
apt-get -q -y install --no-install-recommends "${missing[@]}" >&2
