#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a guest: makes the machine's file system its root, below an overlay that
# forgets, and goes on with guest/init.sh there.
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /lower /upper /root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r name; do
	insmod "/modules/$name.ko" || echo "initramfs: no module $name"
done </modules/order

# The machine's files do not change while a guest looks at them, but for what the tests do not read.
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose machine /lower || exit 1
mount -t tmpfs -o size=75% upper /upper || exit 1
mkdir /upper/files /upper/work /job
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 job /job || exit 1
dd if=/job/warm.tar bs=400k 2>/dev/null | tar -x -C /upper/files -f - || exit 1
umount /job
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /root || exit 1

for word in $(cat /proc/cmdline); do
	case $word in
	xmasq.modules=*) modules=/lower${word#*=} ;;
	xmasq.guest=*) guest=${word#*=} ;;
	esac
done
mkdir -p "/root/usr/lib/modules/$(uname -r)"
mount --bind "$modules" "/root/usr/lib/modules/$(uname -r)" || exit 1
exec switch_root /root "$guest/init.sh"
