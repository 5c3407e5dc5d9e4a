# all-is-back.sh NOTE: after a boot the cloud answers, what ran runs again as it was, what was stopped is stopped.
# shellcheck shell=bash disable=SC2154  # sourced by the stages

step 'Everything is back by itself'
same 'another boot' yes "$([ "$(cat /proc/sys/kernel/random/boot_id)" != "$(cat $kept/boot)" ] && echo yes)"
eventually 'the host is ready' host_is_ready
eventually 'keeper runs' is keeper .status.phase running
eventually 'once runs: a machine that reboots starts what ran on it' is once .status.phase running
eventually 'exec works' inside keeper -- true
units_are active enabled
same 'sleeper' stopped "$(field sleeper .status.phase)"
same 'the addresses' "$(paste -sd' ' $kept/addresses)" \
	"$(for name in keeper once sleeper; do field $name .status.nics.eth0.address; done | paste -sd' ')"
same 'the note' "$1" "$(inside keeper -- cat /root/note)"
limits keeper 50000 67108864 50 1048576
check 'keeper is reached at its address' ping -c 1 -W 20 "$(field keeper .status.nics.eth0.address)"
same "the owner's container" running "$(docker inspect -f '{{.State.Status}}' mine)"
same 'failed units' '' "$(systemctl --failed --no-legend --plain)"
