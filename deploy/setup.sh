#!/bin/bash
# Installs what this machine lacks to build and run Enoki, from the Debian archive and nothing else.
#
# What counts is whether a program is there, not which package brought it: a machine with Docker's own
# packages keeps them. With nothing missing it does nothing, needs no root and takes no time.
# No service is started here; `enoki up` starts what it needs.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }
apparmor_complete() { ! grep -qs Y /sys/module/apparmor/parameters/enabled || have apparmor_parser; }
static_busybox() { have busybox && ! LC_ALL=C ldd "$(PATH="$PATH:/usr/sbin:/sbin" command -v busybox)" >/dev/null 2>&1; }

missing=()
# need PACKAGE TEST...: the package is wanted when the test fails.
need() {
	local package=$1
	shift
	"$@" || missing+=("$package")
}

# The engine below the instances, and the store. containerd and dockerd are tested, never `docker`: a client
# is often there without an engine beside it.
need docker.io have dockerd
need docker.io have docker
need containerd have containerd
need runc have runc
# Where the kernel has AppArmor, Debian's dockerd starts no container without its parser.
need apparmor apparmor_complete
need etcd-server have etcd
need etcd-client have etcdctl
# The contents of imported images.
need docker-registry have docker-registry
# The build: a linker and C library, and protoc with its includes for etcd's API.
need gcc have cc
need libc6-dev test -e /usr/include/stdio.h
need protobuf-compiler have protoc
need libprotobuf-dev test -e /usr/include/google/protobuf/timestamp.proto
# Base images.
need debootstrap have debootstrap
need debian-archive-keyring test -e /usr/share/keyrings/debian-archive-keyring.gpg
need busybox-static static_busybox
need xz-utils have xz
need python3-pip have pip3
# Links, rules and disks; then what the scripts and tests drive.
need iproute2 have ip
need iptables have iptables
need nftables have nft
need e2fsprogs have mkfs.ext4
need xfsprogs have mkfs.xfs
need kmod have modprobe
need procps have ps
need curl have curl
need jq have jq
need iputils-ping have ping
need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt

install_missing() {
	[ "$(id -u)" = 0 ] || die "missing: ${missing[*]}. Run this as root to install them from the Debian archive."
	have apt-get || die "missing: ${missing[*]}. This machine has no apt-get: install them the way it does."
	say "installing ${missing[*]}"

	# Debian starts its own etcd on 2379, where ours belongs, and a registry for everybody on 5000. A mask is a link,
	# and works without systemd. What is already installed is its owner's, and stays as it is.
	local package unit
	for package in etcd-server:etcd docker-registry:docker-registry; do
		unit=/etc/systemd/system/${package#*:}.service
		case " ${missing[*]} " in
		*" ${package%:*} "*)
			mkdir -p /etc/systemd/system
			[ -e "$unit" ] || ln -s /dev/null "$unit"
			;;
		esac
	done

	# A machine that has a policy on starting services keeps it; one that has none gets "no" for these minutes.
	local policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		# shellcheck disable=SC2064
		trap "rm -f $policy" EXIT INT TERM
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 0755 "$policy"
	fi

	export DEBIAN_FRONTEND=noninteractive
	local apt=(apt-get -q -y -o DPkg::Lock::Timeout=300)
	# Talk goes to stderr: stdout of our scripts is data.
	"${apt[@]}" update >&2 || die "apt-get update failed: see above"
	"${apt[@]}" install --no-install-recommends "${missing[@]}" >&2 || die "apt-get install failed: see above"
}

if [ ${#missing[@]} -gt 0 ]; then
	mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
	install_missing
fi

have cargo || [ -x "$HOME/.cargo/bin/cargo" ] || die "Rust is missing. Install it with rustup (https://rustup.rs):
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal
and open a new shell. rust-toolchain.toml names the version; rustup fetches it."
