#!/bin/sh
# Runs one of the attach-*.mjs in the test machine. Where it has a disk, its work lies on a file system there.
# Called by attach.test.ts:   attach.sh NODE PROGRAM
set -eu
here=$(dirname "$0")
if [ -b /dev/vda ]; then
  mkfs.ext4 -q /dev/vda
  mkdir -p /mnt/work
  mount /dev/vda /mnt/work
  export CSNAP_WORK=/mnt/work
fi
exec "$1" "$here/$2"
