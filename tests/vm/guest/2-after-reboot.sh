# Nobody has typed anything since the reboot: all of it must be there.
# shellcheck shell=bash disable=SC2154  # sourced by run.sh

. ./all-is-back.sh 'before the reboot'

step 'The power is cut'
check 'a note that is written through' inside keeper -- sh -c 'echo before the power cut >/root/note; sync'
cat /proc/sys/kernel/random/boot_id >$kept/boot
sync $kept/boot
ending=power-cut
