#!/bin/bash
# csnap under the kernel's own NBD driver: a real file system on the origin with a verified load,
# snapshots created and deleted meanwhile, each compared with a reference copy. Called by
# nbd.test.ts and by hand:
#     scripts/vm [--kernel 6.12] -- test/vm/nbd-regression.sh ext4|xfs
# Its last line is "N passed, N failed".
#
# N1 A frozen snapshot's reference is read from the origin, not from the snapshot, while the file
#    system stands still. That of a snapshot under load is its own first reading.
# N2 References come through libnbd, which asks for holes and leaves them out; what is compared with
#    them comes through /dev/nbdX with direct I/O: every byte, and nothing that the kernel cached.
# N3 Under load csnap is asked through its control socket, by curl: node takes 20 s to start beside
#    fio in an emulated machine. The commands themselves are used where the machine is quiet.
# N4 Nothing that can hang runs while the file system is frozen but curl and nbdcopy.
set -euo pipefail

export PATH=$PATH:/usr/sbin:/sbin
project=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
readonly project volume=disk1
readonly origin_device=/dev/nbd0 snapshot_device=/dev/nbd1 mounted_device=/dev/nbd2
readonly kind=${1-} size=$((64 << 20)) # the kernel reads 10 MB/s here

die() {
  echo "nbd-regression: $*" >&2
  [[ ! -s ${work-}/serve.log ]] || tail -n 20 "$work/serve.log" >&2
  exit 1
}
[[ $kind == ext4 || $kind == xfs ]] || die "usage: nbd-regression.sh ext4|xfs"
[[ ${CSNAP_VM-} ]] ||
  die "this attaches block devices; run it as: scripts/vm -- test/vm/nbd-regression.sh $kind"
for tool in "node nodejs" "nbd-client nbd-client" "nbdcopy libnbd-bin" "fio fio" "curl curl" \
  "mkfs.$kind ${kind/ext4/e2fs}progs"; do
  command -v "${tool% *}" >/dev/null || die "${tool% *} is missing: apt-get install ${tool#* }"
done

work=$(mktemp -d /tmp/nbd-regression.XXXXXX)
readonly work
mkdir "$work"/{origin,snapshot,mounted,copy,reference,manifest}
export CSNAP_STATE_DIR=$work/state CSNAP_RUN_DIR=$work/run NO_COLOR=1
readonly socket=$CSNAP_RUN_DIR/$volume.sock

# What a device is used with: 512-byte sectors as most images have, 4096 as many disks have.
# One connection is what csnap recommends, two must work. mkfs.xfs wants 300 MiB unless told that
# this is no real use.
sector=512 connections=1 read_only=ro,noload plain=rw make=(mkfs.ext4 -q)
if [[ $kind == xfs ]]; then
  sector=4096 connections=2 read_only=ro,norecovery,nouuid plain=nouuid
  make=(mkfs.xfs -q --unsupported)
fi
readonly sector connections read_only plain make

# control METHOD PATH BODY: what `csnap snapshot` and `csnap delete` ask of a server.
control() {
  curl --silent --show-error --fail-with-body --max-time 120 \
    --unix-socket "$CSNAP_RUN_DIR/$volume.control" --request "$1" \
    --header 'Content-Type: application/json' --data "$3" "http://csnap/v1/$2"
}
create() { control POST snapshots "{\"name\":\"$1\"}"; }
csnap() { node "$project/dist/cli/main.js" "$@"; }
say() { echo "[$SECONDS s] $*"; }

passed=0 failed=0
# test_that WHAT COMMAND...: one test.
test_that() {
  local what=$1
  shift
  if "$@" >"$work/output" 2>&1; then
    passed=$((passed + 1))
    say "ok: $what"
  else
    failed=$((failed + 1))
    say "FAILED: $what"
    head -n 40 "$work/output"
  fi
}

# --- the server and its devices ------------------------------------------------------------------

start_server() {
  mkfifo "$work/ready"
  exec {ready}<>"$work/ready"
  node "$project/dist/cli/main.js" serve $volume >&"$ready" 2>"$work/serve.log" &
  server=$!
  local line
  read -r -t 120 line <&"$ready" || die "csnap serve was not ready within 120 s"
  [[ $line == "csnap: $volume ready "* ]] || die "csnap serve said: $line"
}

# attach DEVICE EXPORT [OPTION...]. The kernel knows the size when nbd-client returns.
attach() {
  local device=$1 name=$2
  shift 2
  nbd-client -unix "$socket" "$device" -N "$name" -b $sector "$@" >"$work/nbd-client.log" 2>&1 ||
    die "nbd-client could not attach $name: $(<"$work/nbd-client.log")"
  [[ $(blockdev --getsize64 "$device") == "$size" ]] || die "$device has not the size of $name"
}

detach() {
  nbd-client -d "$1" >/dev/null 2>&1 || return
  [[ $(<"/sys/block/${1#/dev/}/size") == 0 ]]
}

# reference_of EXPORT NAME
reference_of() {
  nbdcopy "nbd+unix:///$1?socket=$socket" "$work/reference/$2" &&
    truncate -s $size "$work/reference/$2"
}
# copy_of DEVICE FILE
copy_of() {
  dd if="$1" of="$2" bs=1M iflag=direct conv=sparse status=none && truncate -s $size "$2"
}

# --- the tree whose every file is known ----------------------------------------------------------

make_tree() {
  mkdir -p "$work/origin/tree"
  cp -r --preserve=mode,timestamps "$project/src" "$work/origin/tree/"
  ln -s src/native.ts "$work/origin/tree/link"
}

# A step of a tree's life: files made, grown, cut, renamed, removed.
change_tree() {
  local step=$1 tree=$work/origin/tree
  mkdir -p "$tree/step$step/deep/er"
  head -c 700000 /dev/urandom >"$tree/step$step/random"
  head -c "$((step * 5000 + 1))" /dev/urandom >"$tree/step$step/deep/er/odd"
  head -c 300000 /dev/urandom |
    dd of="$tree/grown" bs=1k seek=$((step * 200)) conv=notrunc status=none
  if ((step > 1)); then
    truncate -s 12345 "$tree/step$((step - 1))/random"
    mv "$tree/step$((step - 1))/deep" "$tree/moved$step"
  fi
  if ((step > 2)); then rm -r "$tree/step$((step - 2))"; fi
}

# Every name, type, mode, size, link target and content below the directory.
manifest() {
  (
    cd "$1/tree" || exit
    find . -printf '%p %y %m %l ' \( -type f -printf '%s\n' -o -printf '\n' \) | LC_ALL=C sort
    find . -type f -print0 | LC_ALL=C sort -z | xargs -0 b2sum --length=128
  )
}

# --- the load ------------------------------------------------------------------------------------

# Passes of fio until the file $work/stop appears; each writes and then verifies all it wrote. The
# third job covers what the page cache and its write-back send: other sizes, fsync, flushes. Bounded
# in rate, so that fio does not keep the emulated CPUs from all else.
load() {
  local pass=0
  while [[ ! -e $work/stop ]]; do
    pass=$((pass + 1))
    fio --directory="$work/origin/load" --randseed=$((pass * 31)) --verify=crc32c --verify_fatal=1 \
      --do_verify=1 --size=3M --fallocate=none --create_on_open=1 --thread --rate_iops=60 \
      --output="$work/fio.$pass" \
      --name=direct --rw=randwrite --direct=1 --ioengine=libaio --iodepth=8 --bsrange=4k-32k \
      --name=mixed --rw=randrw --direct=1 --ioengine=libaio --iodepth=4 --bs=4k \
      --name=cached --rw=randwrite --direct=0 --ioengine=psync --bs=12k --fsync=16 \
      >/dev/null 2>"$work/fio.err" || { echo "pass $pass" >"$work/load-failed"; return 1; }
    echo $pass >"$work/passes"
  done
}

load_was_right() {
  cat "$work"/fio.err "$work/load-failed" 2>/dev/null || true
  if [[ -e $work/load-failed ]]; then
    cat "$work/fio.$(sed 's/pass //' "$work/load-failed")"
    return 1
  fi
  echo "passes: $(<"$work/passes")"
  (($(<"$work/passes") >= 2))
}

# --- snapshots -----------------------------------------------------------------------------------

frozen_snapshot() {
  local name=$1 status=0
  manifest "$work/origin" >"$work/manifest/$name"
  fsfreeze --freeze "$work/origin"
  { create "$name" && reference_of $volume "$name"; } || status=$?
  fsfreeze --unfreeze "$work/origin"
  return $status
}

loaded_snapshot() {
  create "$1" && reference_of "$volume@$1" "$1"
}

remove_snapshot() {
  control POST snapshots/delete "{\"snapshots\":[\"$1\"]}" &&
    rm -f "$work/reference/$1" "$work/manifest/$1"
}

same_tree() { manifest "$2" | diff "$work/manifest/$1" -; }

fsck_of() {
  if [[ $kind == ext4 ]]; then e2fsck -fn "$1"; else xfs_repair -n "$1"; fi
}

# The file system repairs itself as after a power cut; then nothing may be left to repair.
recovers() {
  mount -t "$kind" -o "loop,$plain" "$1" "$work/copy"
  local status=0
  [[ -e $work/copy/tree/src/native.ts ]] || status=1
  umount "$work/copy"
  ((status == 0)) && fsck_of "$1"
}

verify_snapshot() {
  local name=$1 copy=$work/copy.img
  attach $snapshot_device "$volume@$name"
  copy_of $snapshot_device "$copy"
  test_that "@$name is what it was" cmp "$copy" "$work/reference/$name"
  if [[ -e $work/manifest/$name ]]; then
    mount -t "$kind" -o "$read_only" $snapshot_device "$work/snapshot"
    test_that "@$name mounted: every file is what it was" same_tree "$name" "$work/snapshot"
    umount "$work/snapshot"
    [[ $kind == xfs ]] || test_that "@$name: fsck is clean as it is" fsck_of $snapshot_device
  fi
  detach $snapshot_device
  test_that "@$name: a copy recovers, and its fsck is clean" recovers "$copy"
  rm "$copy"
}

# What the kernel prints when a request fails, waits for 30 s or finds no connection, and what a
# damaged file system makes it print.
no_kernel_errors() {
  ! dmesg | tail -n +$((boot_messages + 1)) | grep -E \
    -e 'I/O error|timed out|stuck request|[Dd]ead connection|Receive control failed|Send .*failed' \
    -e 'EXT4-fs (error|warning)|XFS .*([Cc]orrupt|error|fail)' \
    -e 'BUG|WARNING:|hung_task|blocked for more'
}

names_are() {
  local found
  found=$(csnap list $volume --json | node -e '
    const [{ snapshots }] = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
    console.log(snapshots.map(({ name }) => name).sort().join(" "))')
  echo "found: $found; expected: $*"
  [[ $found == "$*" ]]
}

writes_are_refused() {
  [[ $(blockdev --getro $mounted_device) == 1 ]] || return 1
  ! dd if=/dev/zero of=$mounted_device bs=4096 count=1 oflag=direct conv=notrunc
}

# --- the run -------------------------------------------------------------------------------------

say "kernel $(uname -r), $kind"
boot_messages=$(dmesg | wc -l)
modprobe nbd || die "cannot load nbd"
modprobe loop || die "cannot load loop"
csnap init $volume --origin "$work/$volume.img" --size $size --store "$work/$volume.store" \
  --store-size 64M
start_server
say "serving"

attach $origin_device $volume -C $connections
"${make[@]}" $origin_device >/dev/null 2>&1 || die "${make[0]} failed"
mount -t "$kind" $origin_device "$work/origin"
mkdir "$work/origin/load"
make_tree
load &
loader=$!

for step in 1 2 3 4; do
  change_tree $step
  test_that "@frozen$step is created" frozen_snapshot frozen$step
  case $step in
    1) test_that "@loaded1 is created under load" loaded_snapshot loaded1 ;;
    2)
      attach $mounted_device "$volume@frozen2"
      mount -t "$kind" -o "$read_only" $mounted_device "$work/mounted"
      test_that "@frozen2 can't be written" writes_are_refused
      test_that "@frozen1 is deleted under load" remove_snapshot frozen1
      ;;
    3)
      test_that "fstrim of the origin" fstrim "$work/origin"
      test_that "@loaded2 is created under load" loaded_snapshot loaded2
      test_that "@frozen3, in the middle, is deleted under load" remove_snapshot frozen3
      ;;
  esac
done
test_that "@frozen2, mounted all the while: every file is what it was" \
  same_tree frozen2 "$work/mounted"
: >"$work/stop"
wait $loader || true
test_that "fio verified all it wrote" load_was_right
umount "$work/mounted"
test_that "the mounted snapshot is detached" detach $mounted_device

manifest "$work/origin" >"$work/manifest/command"
test_that "csnap snapshot --freeze" csnap snapshot $volume@command --freeze "$work/origin"
attach $snapshot_device $volume@command
mount -t "$kind" -o "$read_only" $snapshot_device "$work/snapshot"
test_that "@command mounted: every file is what it was" same_tree command "$work/snapshot"
umount "$work/snapshot"
detach $snapshot_device

for name in loaded1 frozen2 loaded2 frozen4; do verify_snapshot $name; done
test_that "exactly the snapshots that were kept are listed" \
  names_are command frozen2 frozen4 loaded1 loaded2
test_that "a deleted snapshot can't be attached" \
  bash -c "! nbd-client -unix $socket $snapshot_device -N $volume@frozen1 -b $sector"

umount "$work/origin"
test_that "origin: fsck is clean" fsck_of $origin_device
copy_of $origin_device "$work/final.img"
test_that "the origin is detached" detach $origin_device
test_that "the kernel saw no error" no_kernel_errors

read_fails() { ! dd if="$1" of=/dev/null bs=4096 count=1 iflag=direct; }
attach $snapshot_device $volume@command
remove_snapshot command >/dev/null
test_that "a snapshot deleted while it is attached answers with errors" read_fails $snapshot_device
test_that "a deleted snapshot is detached" detach $snapshot_device

attach $snapshot_device $volume@frozen2
stop_server() {
  kill -TERM $server
  wait $server
}
test_that "SIGTERM ends the server with 0, though a device is attached" stop_server
test_that "without its server a device answers with errors" read_fails $snapshot_device
test_that "a device without its server is detached" detach $snapshot_device
test_that "check --data is clean" csnap check $volume --data
test_that "the origin alone is current" cmp "$work/$volume.img" "$work/final.img"

echo "$passed passed, $failed failed"
((failed == 0))
