# The same after a power cut; then down, up, and the purge.
# shellcheck shell=bash disable=SC2154  # sourced by run.sh

. ./all-is-back.sh 'before the power cut'

step 'enoki down'
pid=$(field keeper .status.pid)
mine=$(docker inspect -f '{{.State.Pid}}' mine)
dockerd=$(main_pid docker)
check 'enoki down' enoki down
units_are inactive disabled
same 'the processes of ours' '' "$(pgrep -al '^enoki$')"
same 'the pid of dockerd, which was not ours to stop' "$dockerd" "$(main_pid docker)"
same 'the process of keeper in the kernel' init "$(cat "/proc/$pid/comm")"

step 'enoki up'
check 'enoki up' enoki up --timeout 600
eventually 'keeper runs' is keeper .status.phase running
same 'the pid of keeper' "$pid" "$(field keeper .status.pid)"
same 'exec' keeper "$(inside keeper -- hostname)"

step 'enoki down --purge'
check 'enoki down --purge' enoki down --purge --yes
same 'the pid of dockerd' "$dockerd" "$(main_pid docker)"
same "the pid of the owner's container" "$mine" "$(docker inspect -f '{{.State.Pid}}' mine)"
footprint >$kept/after
same 'what is left' '' "$(diff $kept/before $kept/after)"
check 'once more changes nothing' enoki down --purge --yes
footprint >$kept/after
same 'what is left' '' "$(diff $kept/before $kept/after)"
