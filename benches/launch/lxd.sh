# Starts lxd with a view of the cgroups that begins at a group of this cloud. Arguments: the cloud's group, the daemon's folder.
# LXD makes its containers' groups at the top of what it sees; seen from the machine that is below the cloud's own.
parent=$1
export LXD_DIR=$2
for top in /sys/fs/cgroup/*/; do
	top=${top%/}
	# Not the links by which version 1 names one hierarchy twice, and not the groups of version 2.
	[ -L "$top" ] && continue
	[ -e "$top/cgroup.procs" ] && mountpoint -q "$top" || continue
	mkdir -p "$top$parent/lxd"
	if [ -e "$top/cpuset.cpus" ]; then
		# A new cpuset is empty, and nothing can run in it.
		for group in "$top$parent" "$top$parent/lxd"; do
			cat "$top/cpuset.cpus" >"$group/cpuset.cpus"
			cat "$top/cpuset.mems" >"$group/cpuset.mems"
		done
		echo 1 >"$top$parent/lxd/cgroup.clone_children"
	fi
	echo $$ >"$top$parent/lxd/cgroup.procs"
done
if [ -e /sys/fs/cgroup/cgroup.procs ]; then
	mkdir -p "/sys/fs/cgroup$parent/lxd"
	echo $$ >"/sys/fs/cgroup$parent/lxd/cgroup.procs"
fi
# Process ids of its own too: LXC takes the group of process 1 for the top of the tree.
exec unshare --cgroup --mount --pid --fork --mount-proc sh -euc '
	# What is mounted now shows the whole machine; mounted again, it begins at our group.
	if [ -e /sys/fs/cgroup/cgroup.procs ]; then
		mount -t cgroup2 cgroup /sys/fs/cgroup
	fi
	grep " - cgroup2\? " /proc/self/mountinfo | while read -r _ _ _ _ at _ rest; do
		[ "$at" = /sys/fs/cgroup ] && continue
		super=${rest##* }
		umount "$at"
		case $rest in
		*"- cgroup2 "*) mount -t cgroup2 cgroup "$at" ;;
		*name=systemd*) mount -t cgroup -o none,name=systemd cgroup "$at" ;;
		*) mount -t cgroup -o "${super#rw,}" cgroup "$at" ;;
		esac
	done
	mkdir -p "$LXD_DIR"
	# Not by exec: as process 1 the shell also waits for what the containers leave behind.
	lxd --group root
	exit
'
