#!/bin/bash
# Enoki on a real Debian 12 with systemd, in an emulated machine: run.sh ENOKI HELPERS_FOLDER
#
# The machine (image.sh) boots from a disk whose changes are thrown away, with a second disk that carries the programs, the
# tiny base image and the test (guest/). The test talks on the second serial port, which is shown here; the machine reboots
# as the test asks and switches itself off. The console of all boots is in LOG. Exit code 0: all of it passed.
#
# The machine has no network, two CPUs and 2 GiB. It is emulated (no KVM), so this takes about a quarter of an hour; after
# an hour it is ended.
set -euo pipefail
cd "$(dirname "$0")"

die() { printf 'vm: %s\n' "$*" >&2; exit 1; }
[ $# = 2 ] || { printf 'usage: run.sh ENOKI HELPERS_FOLDER\n' >&2; exit 2; }
[ "$(id -u)" = 0 ] || die "run this as root: it makes the disks of a machine"
PATH=$PATH:/usr/sbin:/sbin
LOG=${ENOKI_VM_LOG:-/var/cache/enoki/vm/console.log}

machine=$(./image.sh)
tiny=$(../../deploy/images/tiny.sh)
work=$(mktemp -d /var/cache/enoki/vm/.run-XXXXXX)
qemu=
trap '[ -z "$qemu" ] || { kill "$qemu" 2>/dev/null && wait "$qemu"; }; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The second disk. Its programs are without debug information: it halves what the machine must read.
mkdir "$work/payload" "$work/payload/helpers"
strip -o "$work/payload/enoki" "$1"
cp "$2/enoki-runtime" "$2/enoki-init" "$work/payload/helpers/"
cp ../../deploy/install.sh "$work/payload/"
cp "$tiny" "$work/payload/tiny.tar"
cp -r guest "$work/payload/"
mkfs.ext4 -q -d "$work/payload" "$work/payload.ext4" 256M >"$work/log" 2>&1

# A folder for the changes, which qemu keeps in a file that it has already unlinked.
mkfifo "$work/said"
TMPDIR=$work timeout --kill-after=10 3600 qemu-system-x86_64 -nodefaults -display none -monitor none \
	-accel tcg,thread=multi,tb-size=1024 -cpu max -smp 2 -m 2048 \
	-kernel "$machine/vmlinuz" -initrd "$machine/initrd.img" \
	-append "root=/dev/vda rw console=ttyS0 systemd.show_status=false panic=-1 mitigations=off cryptomgr.notests" \
	-drive "file=$machine/root.ext4,format=raw,if=virtio,snapshot=on" \
	-drive "file=$work/payload.ext4,format=raw,if=virtio,readonly=on" \
	-nic none -device virtio-rng-pci \
	-serial "file:$LOG" -serial "file:$work/said" &
qemu=$!
sed -u "s/\r//" <"$work/said" | tee "$work/verdict"
wait "$qemu" || die "the machine did not switch itself off within an hour; its console: $LOG"
qemu=
grep -qx passed "$work/verdict" || die "failed; the console of the machine: $LOG"
! grep -q '^FAILED' "$work/verdict" || die "failed; the console of the machine: $LOG"
