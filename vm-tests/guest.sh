#!/bin/sh
# Process 1 on the guest's root filesystem. Mounts what a booted system has, runs the plan that the kernel's command line names,
# and ends with the verdict on the second serial port, which carries the tests' output alone.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^meshnode\.$1=//p"; }

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/lock

# The kernel loads further modules on demand, as on any system.
modules=/lib/modules/$(uname -r)
mkdir -p "$modules"
mount --bind "$(word modules)" "$modules"

hostname meshnode-vm
ip link set lo up
sysctl -q -w net.ipv4.ip_unprivileged_port_start=1024 kernel.printk_ratelimit=0

stty -F /dev/ttyS1 raw -echo
# Through a pipe, as test runners colour what goes to a terminal.
{
    sh "$(word plan)" </dev/null 2>&1
    printf '\nmeshnode-vm: exit %d\n' $?
} | cat >/dev/ttyS1
sync
busybox poweroff -f 2>/dev/null || echo o >/proc/sysrq-trigger
sleep 60
