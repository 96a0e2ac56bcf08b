#!/bin/bash
# Proves that the test VM can do what csnap's VM tests need of a kernel: attach an NBD export of a
# third-party server, put a file system on it, find the data again after a second attach.
# Run by hand and by .ci/run as: scripts/vm [--kernel 6.12] -- test/vm/smoke.sh
set -euo pipefail

export PATH=$PATH:/usr/sbin:/sbin
fail() { echo "smoke: $*" >&2; exit 1; }
need() {
  command -v "$1" >/dev/null || fail "$1 is missing; install it with: apt-get install $2"
}
[[ ${CSNAP_VM-} ]] || fail "this attaches block devices; run it as: scripts/vm -- test/vm/smoke.sh"
need nbdkit nbdkit
need nbd-client nbd-client
need mkfs.ext4 e2fsprogs
need mkfs.xfs xfsprogs

work=$(mktemp -d /tmp/smoke.XXXXXX)
mkdir "$work/mnt"
readonly device=/dev/nbd0

# Attaching is done when the kernel knows the size; there is no udev to wait for.
attach() {
  nbd-client -unix "$socket" "$device" -N '' >/dev/null ||
    fail "nbd-client could not attach $device"
  [[ $(blockdev --getsize64 "$device") == "$size" ]] ||
    fail "$device has not the size of its export"
}
detach() {
  nbd-client -d "$device" >/dev/null
  [[ $(</sys/block/nbd0/size) == 0 ]] || fail "$device still has a size after detach"
}

check_file_system() {
  local kind=$1 sum started=$SECONDS
  local image=$work/$kind.img
  truncate --size "$size" "$image"
  socket=$work/$kind.sock
  # Without --foreground nbdkit returns once it listens: nothing to wait for.
  nbdkit --pidfile "$work/$kind.pid" --unix "$socket" file "$image" || fail "nbdkit did not start"

  attach
  "mkfs.$kind" -q "$device" || fail "mkfs.$kind failed"
  mount -t "$kind" "$device" "$work/mnt" || fail "cannot mount $kind"
  dd if=/dev/urandom of="$work/mnt/data" bs=1M count=8 conv=fsync status=none
  sum=$(sha256sum <"$work/mnt/data")
  umount "$work/mnt"
  detach

  attach
  mount -t "$kind" "$device" "$work/mnt" || fail "cannot mount $kind a second time"
  [[ $(sha256sum <"$work/mnt/data") == "$sum" ]] || fail "$kind: other data after the second attach"
  umount "$work/mnt"
  detach

  kill "$(<"$work/$kind.pid")"
  rm "$image"
  echo "smoke: $kind over nbd: ok ($((SECONDS - started)) s)"
}

echo "smoke: kernel $(uname -r)"
modprobe nbd || fail "cannot load nbd"
[[ -b $device ]] || fail "$device did not appear"
size=$((512 * 1024 * 1024))
check_file_system ext4
check_file_system xfs
echo "smoke: pass"
