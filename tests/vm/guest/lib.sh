# What every stage uses: one line for each thing that was looked at, and how to look.
# Emulation makes everything about ten times slower than a machine is: every bound is wide.
# shellcheck shell=bash

failures=0

step() { printf '\n# %s\n' "$1"; }
ok() { printf 'ok      %s\n' "$1"; }
bad() {
	failures=$((failures + 1))
	printf 'FAILED  %s\n' "$1"
	[ -z "${2:-}" ] || printf '%s\n' "$2" | tail -n 15 | sed 's/^/        | /'
}

# check WHAT COMMAND...: it must succeed; what it says is shown when it does not.
check() {
	local what=$1 said
	shift
	if said=$("$@" 2>&1); then ok "$what"; else bad "$what" "$said"; fi
}

# same WHAT WANTED GOT
same() {
	if [ "$2" = "$3" ]; then ok "$1: $3"; else bad "$1" "wanted: $2"$'\n'"got:    $3"; fi
}

# eventually WHAT COMMAND...: it must succeed within five minutes.
eventually() {
	local what=$1 began=$SECONDS
	shift
	until "$@" >/dev/null 2>&1; do
		if [ $((SECONDS - began)) -gt 300 ]; then
			bad "$what" "not within five minutes; last: $("$@" 2>&1)"
			return
		fi
		sleep 1
	done
	ok "$what (after $((SECONDS - began)) s)"
}

# field NAME JQ_PATH: one value of an instance as the API tells it.
field() { timeout 60 enoki get instance "$1" -o json | jq -r "$2 // empty"; }
is() { [ "$(field "$1" "$2")" = "$3" ]; }
inside() { timeout 120 enoki exec "$@"; }

host_is_ready() { timeout 60 enoki get hosts -o json | jq -e '.items[0].status.phase == "ready"'; }
main_pid() { systemctl show --property MainPID --value "$1"; }
restarted() { [ "$(main_pid "$1")" != "$2" ] && [ "$(main_pid "$1")" != 0 ] && systemctl is-active --quiet "$1"; }
docker_knows() { docker info --format '{{json .}}' | jq -e '.Runtimes.enoki.path != null and .LiveRestoreEnabled'; }

units=(enoki-etcd.service enoki-registry.service enoki-server.service enoki-agent.service enoki-pki.timer)
units_are() {
	local unit
	for unit in "${units[@]}"; do
		same "$unit" "$1 $2" "$(systemctl is-active "$unit") $(systemctl is-enabled "$unit" 2>/dev/null)"
	done
}

# limits NAME QUOTA MEMORY PIDS WRITE_BPS: what the status tells, and what the kernel tells inside (cgroup v2). One device
# or two have the throttle: the disk, and the loop device on it.
limits() {
	same "status.limits.state of $1" applied "$(field "$1" .status.limits.state)"
	same "cpu.max, memory.max, memory.swap.max, pids.max, wbps of $1" "$2 100000, $3, 0, $4, $5" \
		"$(inside "$1" -- sh -c 'cd /sys/fs/cgroup && cat cpu.max memory.max memory.swap.max pids.max &&
			sed "s/.*wbps=//; s/ .*//" io.max | sort -u' | paste -sd, | sed 's/,/, /g')"
}

# Everything on this machine that Enoki might have left behind, as text to compare. Docker's and systemd's own are in it
# too, so that what we change of theirs shows.
footprint() {
	find /etc -printf '%p %l\n' | sort
	find / -xdev \( -path /proc -o -path /var/lib/docker -o -path /payload \) -prune -o -iname '*enoki*' -print | sort
	find /run -iname '*enoki*' | sort
	jq -S . /etc/docker/daemon.json 2>/dev/null
	ip -o link | awk -F': ' '{ print "link", $2 }' | sed 's/@.*//; s/veth.*/veth/' | sort
	nft list tables | grep -v 'ip6\? \(nat\|filter\)' | sort
	iptables -S DOCKER-USER
	docker ps -a --format 'container {{.Names}} {{.State}}' | sort
	docker images --format 'image {{.Repository}}:{{.Tag}}' | sort
	# Docker 20.10 forgets the names that it has built in when it is reloaded with a list of runtimes, until it is restarted.
	docker info --format '{{json .}}' 2>/dev/null |
		jq -c '["docker", (.Runtimes | keys | map(select(startswith("io.containerd.") | not))), .LiveRestoreEnabled]'
	awk '{ print "mount", $2 }' /proc/mounts | grep -v 'docker\|containerd\|/run/' | sort
	losetup --list --noheadings --output BACK-FILE
	echo "network namespaces $(lsns --noheadings --type net | wc -l)"
	systemctl list-units --all --no-legend --plain 'enoki*' 'docker-*.scope' | awk '{ print "unit", $1 }' | sed 's/-[0-9a-f]*\.scope/.scope/'
	systemctl --failed --no-legend --plain | awk '{ print "failed", $1 }'
	pgrep -al enoki | sed 's/^[0-9]* /process /'
}

diagnose() {
	printf '\n# For the reader of a failure\n'
	{
		timeout 60 enoki get hosts
		timeout 60 enoki get instances
		timeout 60 enoki describe instance keeper
		systemctl --no-pager --failed
		for unit in enoki-etcd enoki-registry enoki-server enoki-agent docker; do
			journalctl --no-pager -q -o cat -u "$unit" -n 12 | cut -c1-200 | sed "s/^/$unit: /"
		done
	} 2>&1 | sed 's/^/        | /'
}
