#!/bin/bash
# lab.sh up HOSTS SERVERS BINARY | down: starts a lab (tests/harness/src/bin/enoki-lab.rs) in the background, or ends it.
set -euo pipefail

folder=/run/enoki-lab
say() { printf 'lab: %s\n' "$*" >&2; }

running() {
	pid=$(cat "$folder/pid" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = enoki-lab ]
}

down() {
	if running; then
		say "ending the lab"
		kill -TERM "$pid"
		for _ in $(seq 600); do
			[ -e "/proc/$pid" ] || break
			sleep 0.1
		done
		if [ -e "/proc/$pid" ]; then
			say "process $pid does not end; read $folder/log"
			exit 1
		fi
	fi
	rm -rf "$folder"
}

up() {
	hosts=$1 servers=$2 binary=$3
	if running; then
		say "a lab is running; make lab-down ends it"
		exit 1
	fi
	rm -rf "$folder"
	mkdir -m 0700 "$folder"
	setsid "$binary" "$hosts" "$servers" </dev/null >"$folder/log" 2>&1 &
	echo $! >"$folder/pid"
	say "starting $hosts hosts, $servers of them servers (log: $folder/log)"
	until [ -e "$folder/env" ]; do
		if ! running; then
			tail -n 30 "$folder/log" >&2
			exit 1
		fi
		sleep 0.2
	done
	say "$hosts hosts are ready: . $folder/env, then enoki get hosts"
}

case ${1-} in
up) up "${2:?hosts}" "${3:?servers}" "${4:?binary}" ;;
down) down ;;
*)
	say "usage: lab.sh up HOSTS SERVERS BINARY | down"
	exit 2
	;;
esac
