#!/usr/bin/env bash
# Process 1 of a host of the testbed, in its own network, mount, process and host name spaces: makes
# the host's file system out of this machine's, read-only, then serves ssh until it is killed.
#
#     host.sh FOLDER NAME PYTHON VENV PROJECT SHARED
set -euo pipefail
folder=$1 name=$2 python=$3 venv=$4 project=$5 shared=$6
root=$folder/root
mkdir -p "$root" "$folder/home" "$folder/upper" "$folder/work"
hostname "$name"

mount --bind / "$root"
mount -o remount,bind,ro "$root"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=1g tmpfs "$root/dev/shm"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
for own in tmp run srv var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "$root/$own"; done
mount --bind "$folder/home" "$root/root"
mkdir -p "$root/run/sshd" "$root/srv/ali"
mount --bind "$shared" "$root/srv/ali"
# The project reaches a host by `ray up` alone. What it depends on is part of the host's image.
mkdir -p "$root$project"
mount -t tmpfs tmpfs "$root$project"
mkdir -p "$root$python" "$root$venv"
mount --bind "$python" "$root$python"
mount -t overlay overlay "$root$venv" \
    -o "lowerdir=$venv,upperdir=$folder/upper,workdir=$folder/work"

chroot "$root" /usr/sbin/sshd -D -e -f /root/.ssh/sshd_config 2> "$folder/sshd.log" &
wait $!  # bash reaps what daemons leave to process 1
