#!/bin/sh
# Process 1 of the initramfs. Mounts the host's root filesystem (9p, read-only) below a writable layer in memory, and goes on
# there with guest.sh. Everything here is busybox's.
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev

# In the order of their names, which is the order of their dependencies.
for module in /modules/*; do
    busybox insmod "$module" || echo "init: $module does not load"
done

# The host's files do not change while the guest runs, so it may cache them.
busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=524288 root /host &&
    busybox mount -t tmpfs -o size=75% tmpfs /layer &&
    busybox mkdir /layer/upper /layer/work &&
    busybox mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /root || {
    echo "init: no root filesystem"
    busybox poweroff -f
}

busybox cp /guest.sh /root/guest.sh
for tree in proc sys dev; do
    busybox mount --move /$tree /root/$tree
done
exec busybox switch_root /root /bin/sh /guest.sh
