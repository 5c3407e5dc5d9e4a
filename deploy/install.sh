#!/bin/bash
# Puts the built programs where they belong: install.sh ENOKI HELPERS_FOLDER
#
# Each file is replaced by rename, so a running program keeps its old bytes and nobody ever sees half a file.
# A file whose bytes are the same is left alone: `enoki up` tells a new binary from an old one by it.
set -euo pipefail

say() { printf 'install: %s\n' "$*" >&2; }
[ $# = 2 ] || { say "usage: install.sh ENOKI HELPERS_FOLDER"; exit 2; }
[ "$(id -u)" = 0 ] || { say "run this as root: it writes to /usr/local"; exit 1; }

new=
trap 'rm -f "$new"' EXIT

# place SOURCE TARGET
place() {
	cmp -s "$1" "$2" && return
	# A name of its own: two that install at once do not take each other's file away.
	new=$2.new.$$
	install -D -m 0755 -o root -g root "$1" "$new"
	mv -f "$new" "$2"
	say "$2"
}

# The helpers first: the binary that is started next relies on them.
place "$2/enoki-runtime" /usr/local/lib/enoki/runtime
place "$2/enoki-init" /usr/local/lib/enoki/init
place "$1" /usr/local/bin/enoki
