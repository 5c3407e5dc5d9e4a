# A machine with a Docker of its owner's: install, up, instances with limits, and everything killed once.
# shellcheck shell=bash disable=SC2154  # sourced by run.sh

step 'The machine before'
same 'PID 1' systemd "$(cat /proc/1/comm)"
same 'control groups' cgroup2fs "$(stat -f -c %T /sys/fs/cgroup)"
same 'the cgroup driver of Docker' 'systemd 2' "$(docker info --format '{{.CgroupDriver}} {{.CgroupVersion}}')"
printf '{"log-level": "warn"}\n' >/etc/docker/daemon.json
docker import /payload/tiny.tar mine:1 >/dev/null
# It ends on SIGTERM: else the reboot waits 90 s for it.
check 'a container of the owner runs' docker run -d --name mine --restart always --network none mine:1 \
	sh -c 'trap "exit 0" TERM; while :; do sleep 1000 & wait; done'
check 'install.sh' /payload/install.sh /payload/enoki /payload/helpers
footprint >$kept/before

step 'enoki up'
dockerd=$(main_pid docker)
check 'enoki up' enoki up --timeout 600
units_are active enabled
same 'the pid of dockerd' "$dockerd" "$(main_pid docker)"
check 'Docker knows the runtime, and live-restore is on' docker_knows
check 'the host is ready' host_is_ready
same 'cgroup version of the host' v2 "$(enoki get hosts -o json | jq -r '.items[0].status.cgroup')"
same "the owner's container" running "$(docker inspect -f '{{.State.Status}}' mine)"

step 'Instances'
check 'image import' enoki image import enoki/tiny:1 /payload/tiny.tar
check 'keeper runs' enoki run keeper --image enoki/tiny:1 --restart always --cpus 0.5 --memory 64Mi --pids 50 \
	--disk-size 64Mi --disk-write-bps 1MiB --wait --timeout 600s
check 'once runs' enoki run once --image enoki/tiny:1 --restart never --wait --timeout 600s -- sleep 1000000
check 'sleeper runs' enoki run sleeper --image enoki/tiny:1 --restart always --wait --timeout 600s
check 'sleeper is stopped' enoki stop sleeper --timeout 300s
same 'exec' keeper "$(inside keeper -- hostname)"
limits keeper 50000 67108864 50 1048576
check 'keeper is reached at its address' ping -c 1 -W 20 "$(field keeper .status.nics.eth0.address)"
check 'its disk has the size' inside keeper -- sh -c 'size=$(df -m / | tail -1 | awk "{ print \$2 }"); echo $size; [ $size -gt 30 ] && [ $size -lt 70 ]'
began=$(date +%s%N)
check 'four megabytes written past the cache' inside keeper -- dd if=/dev/zero of=/root/direct bs=1M count=4 oflag=direct
same 'they took three seconds at least' yes "$([ $(($(date +%s%N) - began)) -gt 3000000000 ] && echo yes)"
check 'usage is read' sh -c "enoki top -o json | tee /dev/stderr | jq -e '.. | objects | select(.name == \"keeper\" and .memory_bytes > 100000 and .pids > 0)'"

step 'Larger and smaller while it runs'
pid=$(field keeper .status.pid)
check 'resize' enoki resize keeper --cpus 1 --memory 96Mi --pids 60
limits keeper 100000 100663296 60 1048576
systemctl daemon-reload
sleep 5
ok 'systemd has read its units again'
limits keeper 100000 100663296 60 1048576
check 'thirty megabytes that cannot be reclaimed' inside keeper -- dd if=/dev/zero of=/dev/shm/held bs=1M count=30
enoki resize keeper --memory 24Mi >/dev/null 2>&1
eventually 'less memory than is in use is put off' is keeper .status.limits.state deferred
same 'memory.max of keeper' 100663296 "$(inside keeper -- cat /sys/fs/cgroup/memory.max)"
same 'memory.high of keeper' max "$(inside keeper -- cat /sys/fs/cgroup/memory.high)"
check 'they are freed' inside keeper -- rm /dev/shm/held
eventually 'then it is done' is keeper .status.limits.state applied
limits keeper 100000 25165824 60 1048576
check 'back' enoki resize keeper --cpus 0.5 --memory 64Mi --pids 50
same 'the pid of keeper' "$pid" "$(field keeper .status.pid)"

step 'enoki up again'
pids() { for unit in docker containerd enoki-etcd enoki-registry enoki-server enoki-agent; do main_pid $unit; done | paste -sd' '; }
before=$(pids)
check 'enoki up' enoki up --timeout 600
same 'no process is another' "$before" "$(pids)"

step 'Each killed by SIGKILL comes back, and nobody notices'
for unit in enoki-server enoki-agent enoki-etcd enoki-registry docker containerd; do
	old=$(main_pid $unit)
	kill -KILL "$old"
	eventually "$unit is back" restarted $unit "$old"
	eventually 'the host is ready' host_is_ready
	eventually 'exec works' inside keeper -- true
	same 'the pid of keeper' "$pid" "$(field keeper .status.pid)"
done
for unit in enoki-agent enoki-server enoki-registry enoki-etcd docker; do
	check "systemctl restart $unit" systemctl restart $unit
done
eventually 'the host is ready' host_is_ready
eventually 'exec works' inside keeper -- true
same 'the pid of keeper' "$pid" "$(field keeper .status.pid)"
same "the process of keeper in the kernel" init "$(cat "/proc/$pid/comm")"

step 'Reboot'
check 'a note' inside keeper -- sh -c 'echo before the reboot >/root/note'
for name in keeper once sleeper; do field $name .status.nics.eth0.address; done >$kept/addresses
cat /proc/sys/kernel/random/boot_id >$kept/boot
