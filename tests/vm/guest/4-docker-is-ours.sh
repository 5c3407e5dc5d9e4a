# A machine whose Docker is switched off and has no configuration: `enoki up` starts it, `enoki down` stops it again.
# shellcheck shell=bash disable=SC2154  # sourced by run.sh

step 'Docker is off'
rm /etc/docker/daemon.json
docker rm -f mine >/dev/null
docker rmi -f mine:1 >/dev/null
footprint >$kept/before
systemctl disable --now docker.socket docker.service containerd.service 2>/dev/null
for unit in docker.service containerd.service; do same $unit inactive "$(systemctl is-active $unit)"; done

step 'enoki up'
check 'enoki up' enoki up --timeout 600
for unit in docker.service containerd.service; do same $unit active "$(systemctl is-active $unit)"; done
check 'image import' enoki image import enoki/tiny:1 /payload/tiny.tar
check 'keeper runs' enoki run keeper --image enoki/tiny:1 --memory 64Mi --wait --timeout 600s
pid=$(field keeper .status.pid)

step 'enoki down'
check 'enoki down' enoki down
for unit in docker.socket docker.service containerd.service; do same $unit inactive "$(systemctl is-active $unit)"; done
same 'the process of keeper in the kernel' init "$(cat "/proc/$pid/comm")"
check 'enoki up' enoki up --timeout 600
eventually 'exec works' inside keeper -- true
same 'the pid of keeper' "$pid" "$(field keeper .status.pid)"

step 'enoki down --purge, while it is down already'
check 'enoki down' enoki down
check 'enoki down --purge' enoki down --purge --yes
for unit in docker.socket docker.service containerd.service; do same $unit inactive "$(systemctl is-active $unit)"; done
same 'the process of keeper' '' "$(cat "/proc/$pid/comm" 2>/dev/null)"
systemctl enable --now containerd.service docker.socket docker.service 2>/dev/null
footprint >$kept/after
same 'what is left' '' "$(diff $kept/before $kept/after)"
