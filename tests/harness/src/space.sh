# Runs as root inside fresh mount, network and UTS namespaces and makes them a machine of their own, then sleeps.
# Arguments: the space's folder on disk. It writes `ready` there when done. Nothing here reaches the host:
# propagation is private, and what looks like a write to /etc or /usr/local lands in the folder.
set -eu
root=$1

# Copies of the host's mounts that a running cloud and a running Docker may want to unmount: let go of them, or their
# disks and namespaces would stay busy as long as we live. Deepest first.
awk '$5 ~ "^/(run|var/lib/docker|var/lib/containerd|var/lib/enoki)(/|$)" { print length($5), $5 }' /proc/self/mountinfo |
	sort -rn | cut -d' ' -f2- | while read -r at; do umount -l "$(printf '%b' "$at")" 2>/dev/null || true; done

# These may be mounts themselves (in a container) or links into /run.
cat /etc/resolv.conf >"$root/resolv.conf" 2>/dev/null || : >"$root/resolv.conf"
cat /etc/hosts >"$root/hosts" 2>/dev/null || printf '127.0.0.1 localhost\n' >"$root/hosts"

for folder in etc opt usr/local var/lib var/log; do
	[ -d "/$folder" ] || continue
	over=$root/over/$folder
	mkdir -p "$over/upper" "$over/work"
	mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$over/upper,workdir=$over/work" "/$folder"
done

# Real folders on the real disk, empty at first: Docker can't put its layers on an overlay.
for folder in run var/lib/enoki var/lib/docker var/lib/containerd etc/enoki etc/docker etc/containerd usr/local/lib/enoki \
	var/log/enoki root; do
	mkdir -p "$root/disk/$folder" "/$folder"
	mount --bind "$root/disk/$folder" "/$folder"
done
mkdir -p /run/lock
chmod 1777 /run/lock

rm -f /etc/resolv.conf /etc/hosts
cp "$root/resolv.conf" /etc/resolv.conf
cp "$root/hosts" /etc/hosts
cp "$root/daemon.json" /etc/docker/daemon.json
printf '127.0.1.1 testhost\n' >>/etc/hosts
printf 'testhost\n' >/etc/hostname
hostname testhost
ip link set lo up

: >"$root/ready"
exec sleep infinity
