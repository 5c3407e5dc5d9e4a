#!/bin/bash
# The main job, as the README tells it, with every answer checked: run, resize, exec, stop and start, reach it.
# Leaves the instance `hello` running. Can be repeated: a `hello` that is there already is used.
# On failure it names the step, shows what was said and exits 1.
set -euo pipefail

name=hello
step=start
out=
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi

fail() {
	{
		printf '\ntour: step "%s" failed: %s\n' "$step" "$*"
		if enoki get instance "$name" >/dev/null 2>&1; then
			printf -- '--- enoki describe instance %s\n' "$name"
			timeout 30 enoki describe instance "$name" || true
		fi
	} >&2
	exit 1
}
trap 'fail "line $LINENO of deploy/tour.sh ended with $?"' ERR

step() {
	step=$1
	printf '\n# %s\n' "$1"
}

# show COMMAND...: runs it as a reader would, shows both, keeps stdout in $out. 120 s bound the worst case.
show() {
	printf '%s$ %s%s\n' "$bold" "$(quoted "$@")" "$plain"
	local status=0
	out=$(timeout 120 "$@") || status=$?
	[ -z "$out" ] || printf '%s\n' "$out"
	[ "$status" = 0 ] || fail "$(quoted "$@") ended with $status"
}

# The command as one would type it.
quoted() {
	local word line=
	for word; do
		case $word in
		*[!A-Za-z0-9_./:=,@+-]* | '') line+=" '$word'" ;;
		*) line+=" $word" ;;
		esac
	done
	printf '%s' "${line# }"
}

# field JQ_PATH: one value of the instance as the API tells it.
field() { timeout 30 enoki get instance "$name" -o json | jq -r "$1 // empty"; }

# same WHAT WANTED GOT
same() { [ "$2" = "$3" ] || fail "$1 should be \"$2\" and is \"$3\""; }

# inside COMMAND...: what it prints in the instance, not shown.
inside() { timeout 120 enoki exec "$name" -- "$@"; }

# limits CPUS MEMORY CFS_QUOTA BYTES: what the status tells, and what the kernel tells inside.
limits() {
	same 'status.limits.state' applied "$(field .status.limits.state)"
	same 'status.limits.cpus' "$1" "$(field .status.limits.cpus)"
	same 'status.limits.memory' "$2" "$(field .status.limits.memory)"
	if inside test -e /sys/fs/cgroup/memory.max; then
		same 'cpu.max inside' "$3 100000" "$(inside cat /sys/fs/cgroup/cpu.max)"
		same 'memory.max inside' "$4" "$(inside cat /sys/fs/cgroup/memory.max)"
	else
		same 'cpu.cfs_quota_us inside' "$3" "$(inside cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us)"
		same 'memory.limit_in_bytes inside' "$4" "$(inside cat /sys/fs/cgroup/memory/memory.limit_in_bytes)"
	fi
}

step 'One machine, ready'
show enoki get hosts
same 'the host'"'"'s phase' ready "$(timeout 30 enoki get hosts -o json | jq -r '.items[0].status.phase')"
same 'the number of hosts' 1 "$(timeout 30 enoki get hosts -o json | jq '.items | length')"

step 'An instance'
if enoki get instance "$name" >/dev/null 2>&1; then
	# From an earlier tour: back to where this one begins.
	[ "$(field .status.phase)" = running ] || show enoki start "$name"
	show enoki resize "$name" --cpus 0.5 --memory 256Mi
else
	show enoki run "$name" --image enoki/debian:12 --cpus 0.5 --memory 256Mi --wait
fi
show enoki get instances
same 'status.phase' running "$(field .status.phase)"
limits 0.5 256Mi 50000 268435456
show enoki exec "$name" -- hostname
same 'the hostname inside' "$name" "$out"

step 'Larger, while it runs'
pid=$(field .status.pid)
[ -n "$pid" ] || fail 'status.pid is empty'
show enoki resize "$name" --cpus 1 --memory 512Mi
limits 1 512Mi 100000 536870912
same 'status.pid' "$pid" "$(field .status.pid)"

step 'What it writes stays, and so does its address'
address=$(field .status.nics.eth0.address)
[ -n "$address" ] || fail 'status.nics.eth0.address is empty'
written="written by the tour at $(date -u +%FT%TZ)"
show enoki exec "$name" -- sh -c "echo \"$written\" > /root/note"
show enoki stop "$name"
same 'status.phase' stopped "$(field .status.phase)"
show enoki start "$name"
same 'status.phase' running "$(field .status.phase)"
show enoki exec "$name" -- cat /root/note
same 'the note' "$written" "$out"
same 'the address' "$address" "$(field .status.nics.eth0.address)"
limits 1 512Mi 100000 536870912

step 'The way out'
printf '%s$ enoki exec %s -- apt-get update%s\n' "$bold" "$name" "$plain"
# Any archive that can't be fetched is a failure here; by itself apt-get only warns.
if out=$(inside apt-get -q update -o APT::Update::Error-Mode=any 2>&1); then
	printf '%s\n' "$out" | tail -n 3
else
	# Only a machine that reaches its own archive can ask it of an instance.
	lists=$(mktemp -d)
	trap 'rm -rf "$lists"' EXIT
	mkdir "$lists/partial"
	if timeout 120 apt-get -q update -o APT::Update::Error-Mode=any -o "Dir::State::Lists=$lists" \
		-o APT::Sandbox::User=root >/dev/null 2>&1; then
		printf '%s\n' "$out" >&2
		fail 'apt-get update works on this machine and not in the instance'
	fi
	printf 'this machine has no way to a Debian archive either: the gateway must do\n'
	gateway=$(inside ip -4 route show default | awk '{ print $3; exit }')
	[ -n "$gateway" ] || fail 'the instance has no default route'
	show enoki exec "$name" -- ping -c 1 -W 5 "$gateway"
fi

step 'The way in'
show enoki exec "$name" -- sh -c "mkdir -p /srv/www && echo hello from $name > /srv/www/index.html"
show enoki exec "$name" -- busybox httpd -p 8080 -h /srv/www
show curl -sS --noproxy '*' --max-time 10 --retry 10 --retry-connrefused --retry-delay 1 "http://$address:8080/"
same 'the answer' "hello from $name" "$out"

step 'Still there'
show enoki get instance "$name"
same 'status.phase' running "$(field .status.phase)"
printf '\ntour: all of it works; %s is running at %s\n' "$name" "$address"
