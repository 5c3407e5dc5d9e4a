#!/bin/bash
# Installs what the benchmarks' peers need and Enoki itself does not, from the Debian archive: LXD.
#
# No service is started: a benchmark runs its peers itself, in namespaces of its own. A peer that is missing is left out of
# the table with a sentence, so that failing here is no reason not to measure the others: it says so and exits 0.
set -euo pipefail

say() { printf 'benches: %s\n' "$*" >&2; }

if command -v lxd >/dev/null && command -v lxc >/dev/null; then
	exit
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	say "LXD is missing and can't be installed here: it will be left out"
	exit
fi

# A machine that has a policy on starting services keeps it; one that has none gets "no" for these minutes.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT INT TERM
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 0755 "$policy"
fi
# Not at the next start of the machine either. A mask is a link, and works without systemd.
mkdir -p /etc/systemd/system
for unit in lxd.socket lxd.service lxd-containers.service; do
	[ -e "/etc/systemd/system/$unit" ] || ln -s /dev/null "/etc/systemd/system/$unit"
done
say "installing lxd"
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -q -y -o DPkg::Lock::Timeout=300)
if ! "${apt[@]}" update >&2 || ! "${apt[@]}" install --no-install-recommends lxd >&2; then
	say "LXD could not be installed, see above: it will be left out"
fi
