#!/bin/bash
# Runs the next stage on each boot: the count of stages lives on the machine's own disk. A stage ends by rebooting, by
# cutting the power or, after the last, by switching the machine off. Only a machine that says "passed" has passed.
set -uo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd /payload/guest || exit 1
. ./lib.sh

kept=/var/lib/vm-test
mkdir -p $kept
number=$(($(cat $kept/stage 2>/dev/null || echo 0) + 1))
echo $number >$kept/stage
sync $kept/stage $kept

stages=(1-first-boot 2-after-reboot 3-after-power-cut 4-docker-is-ours)
stage=${stages[$((number - 1))]}
printf '\n=== %s, boot %s, %s s after the kernel\n' "$stage" "$(cut -c1-8 /proc/sys/kernel/random/boot_id)" \
	"$(cut -d. -f1 /proc/uptime)"
ending=reboot
. "./$stage.sh"
printf '=== %s: %s s, %s failed\n' "$stage" "$SECONDS" "$failures"

[ "$failures" = 0 ] || { diagnose && touch $kept/failed; }
if [ "$number" = ${#stages[@]} ]; then
	[ -e $kept/failed ] || echo passed
	ending=off
fi
case $ending in
reboot) systemctl reboot ;;
power-cut) echo b >/proc/sysrq-trigger ;;
off) systemctl poweroff ;;
esac
