#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The guest's init, with the machine's file system as root: what a booted Debian has and the tests
# use, then the job, then off. The runner reads ttyS1: what the job prints, and no kernel messages.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
ln -s /proc/self/fd /dev/fd # the rest of what udev makes nobody asks for
mount -t devpts devpts /dev/pts
# The repository may be below one of the directories that are empty from here on.
repository=$(cd "$(dirname "$0")/../../.." && pwd)
mkdir /.repository
mount --bind "$repository" /.repository
for directory in /dev/shm /run /tmp /var/tmp /var/cache/xmasq; do
	mkdir -p "$directory"
	mount -t tmpfs -o mode=1777 tmpfs "$directory"
done
mkdir -p "$repository"
mount --bind /.repository "$repository"
chmod 755 /run /var/cache/xmasq
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/job
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 job /run/job
# The repository as it was when the guest was started: nothing of what has come since shows through.
mkdir /run/repository
dd if=/run/job/repository.tar bs=400k 2>/dev/null | tar -x -C /run/repository -f -
for name in $(ls -A /run/repository); do
	mount --bind "/run/repository/$name" "$repository/$name"
done
hostname guest
ip link set lo up
echo 100000 >/proc/sys/net/core/netdev_max_backlog # a thousand packets come together while a CPU is emulated
modprobe -a vxlan sch_ingress cls_bpf act_bpf veth bridge tun virtio_net e1000e 2>/dev/null

exec </dev/null >/dev/ttyS1 2>&1
stty -onlcr -F /dev/ttyS1
echo "guest: $(uname -r) is up after $(cut -d. -f1 /proc/uptime) s"
setsid bash /run/job/job.sh
echo $? >/run/job/status
sync
echo o >/proc/sysrq-trigger
sleep 60
