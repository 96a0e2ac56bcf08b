#!/bin/sh
# Two disks that two hosts reach by iSCSI, in the test machine: the kernel's own target (LIO), and a session of its
# initiator for each host. So every disk is there twice, by paths that the target tells apart (I_T nexuses). Prints
# `HOST DISK DEVICE`, a line each. Not tcm_loop: its target executes PREEMPT AND ABORT in the queue that the abort
# waits for, and never answers (6.1, 6.12).
# Called by reservation.mjs:   shared-disks.sh DIRECTORY MEGABYTES
set -eu
directory=$1 megabytes=$2
target=/sys/kernel/config/target
name=iqn.2026-01.org.csnap

for module in target_core_mod target_core_file iscsi_target_mod iscsi_tcp sd_mod; do modprobe $module; done
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
# Linux registers so that it outlasts a loss of power: the target writes registrations down here.
mkdir -p /var/target/pr
for disk in origin store; do
  truncate -s "${megabytes}M" "$directory/$disk"
  backstore=$target/core/fileio_0/$disk
  mkdir -p "$backstore"
  echo "fd_dev_name=$directory/$disk,fd_dev_size=$((megabytes << 20))" >"$backstore/control"
  echo "$disk" >"$backstore/wwn/vpd_unit_serial"
  echo 1 >"$backstore/enable"
done
for host in alpha beta; do
  portal=$target/iscsi/$name:for-$host/tpgt_1
  mkdir -p "$portal/np/127.0.0.1:3260"
  acl=$portal/acls/$name:$host
  lun=0
  for disk in origin store; do
    mkdir -p "$portal/lun/lun_$lun"
    ln -s "$target/core/fileio_0/$disk" "$portal/lun/lun_$lun/disk"
    mkdir -p "$acl/lun_$lun"
    ln -s "$portal/lun/lun_$lun" "$acl/lun_$lun/disk"
    lun=$((lun + 1))
  done
  echo 0 >"$portal/attrib/authentication"
  echo 1 >"$portal/enable"
  iscsistart -i "$name:$host" -t "$name:for-$host" -g 1 -a 127.0.0.1 >&2
done

tries=0
until [ "$(find /sys/class/iscsi_session/*/device/target*/*/block -name 'sd?' 2>/dev/null | wc -l)" = 4 ]; do
  tries=$((tries + 1))
  [ $tries -lt 200 ] || { echo "the disks did not come" >&2; exit 1; }
  sleep 0.1
done
for session in /sys/class/iscsi_session/*; do
  for device in "$session"/device/target*/*/block/sd?; do
    case $device in
      */*:*:*:0/block/*) disk=origin ;;
      *) disk=store ;;
    esac
    host=$(cat "$session/initiatorname")
    echo "${host##*:} $disk /dev/${device##*/}"
  done
done
