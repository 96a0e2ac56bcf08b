#!/bin/bash
# The units of packaging/systemd under a real systemd, in the test machine: a boot that ends with a mounted
# device, a restart of the agent and kill -9 of agent and server under the mount, a shutdown in the right
# order. Without udev a mount of /etc/fstab would wait for its device for ever: a service stands in for it.
# Called by systemd.test.ts:   systemd.sh NODE
set -euo pipefail
[[ ${CSNAP_VM-} ]] || { echo "systemd: this attaches devices; run it as: scripts/vm -- test/vm/systemd.sh NODE" >&2; exit 1; }

export PATH=$PATH:/usr/sbin:/sbin
unset CSNAP_STATE_DIR CSNAP_RUN_DIR
project=$(cd "$(dirname "$0")/../.." && pwd)
readonly project units=/etc/systemd/system device=/dev/nbd3 mount_point=/mnt/disk1
PASSED=0 FAILED=0

expect() {
  local name=$1
  shift
  if "$@"; then
    PASSED=$((PASSED + 1)) && echo "ok: $name"
  else
    FAILED=$((FAILED + 1)) && echo "FAILED: $name"
  fi
}

# until SECONDS COMMAND...
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@" 2>/dev/null; do
    ((SECONDS < end)) || return 1
    sleep 0.2
  done
}

prepare() {
  mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
  mkdir -p /usr/local/bin /etc/csnap/attach "$mount_point" /etc/systemd/system.conf.d
  # The units find `csnap` as an installation has it.
  printf '#!/bin/sh\nexec %s %s/dist/cli/main.js "$@"\n' "$1" "$project" >/usr/local/bin/csnap
  chmod +x /usr/local/bin/csnap
  cp "$project"/packaging/systemd/*.service "$units"
  echo "CSNAP_ATTACH_OPTIONS=--device $device" >/etc/csnap/attach/disk1.conf
  printf '[Manager]\nLogTarget=kmsg\nDefaultStandardOutput=null\nDefaultStandardError=kmsg\n' \
    >/etc/systemd/system.conf.d/test.conf
  cat >"$units/stand-in.service" <<UNIT
[Unit]
DefaultDependencies=no
Requires=csnap-attach@disk1.service
After=csnap-attach@disk1.service remote-fs-pre.target
Conflicts=shutdown.target
Before=shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=mount -o _netdev $device $mount_point
ExecStop=umount $mount_point
UNIT
  printf '[Unit]\nDefaultDependencies=no\nWants=%s\n' \
    'csnap-server@disk1.service csnap-agent.service stand-in.service' >"$units/test.target"
  truncate --size 64M /tmp/disk1.img
  mkfs.ext4 -q -F /tmp/disk1.img
  csnap init disk1 --origin /tmp/disk1.img --store /tmp/disk1.store --store-size 64M >/dev/null
}

boot() {
  dmesg --clear
  unshare --pid --mount --fork --mount-proc env -i "PATH=$PATH" container=other \
    /lib/systemd/systemd --system --unit=test.target </dev/null >/dev/null 2>&1 &
  outer=$!
  until_true 10 pgrep -P "$outer" >/dev/null
  inner=$(pgrep -P "$outer")
  until_true 120 ctl is-active -q stand-in.service
}

ctl() { nsenter --target "$inner" --pid --mount systemctl --no-pager "$@"; }
inside() { nsenter --target "$inner" --mount sh -c "$1"; }
property() { ctl show --value -p "$2" "$1"; }
is_attached() { csnap devices | grep -Eq "^$device .* attached +$mount_point"; }
writes() { inside "echo $1 >$mount_point/$1 && sync -f $mount_point/$1 && grep -q $1 $mount_point/$1"; }

is_protected() {
  [[ $(inside 'cat /sys/fs/cgroup/system.slice/csnap-agent.service/memory.swap.max') == 0 ]] &&
    [[ $(cat "/proc/$(pgrep -f 'main.js agent' | head -n 1)/oom_score_adj") == -1000 ]] &&
    ! csnap status disk1 | grep warning
}

restarts_agent() {
  local before
  before=$(property csnap-agent MainPID)
  ctl restart csnap-agent && [[ $(property csnap-agent MainPID) != "$before" ]] &&
    [[ $(property csnap-agent NFileDescriptorStore) == 1 ]] &&
    ctl is-active -q csnap-attach@disk1 && until_true 60 is_attached
}

kills_both() {
  ctl kill --kill-who=main --signal=KILL csnap-agent csnap-server@disk1
  writes killed && until_true 60 is_attached && ctl is-active -q csnap-agent csnap-server@disk1 &&
    [[ $(property csnap-agent NRestarts) == 1 && $(property csnap-server@disk1 NRestarts) == 1 ]]
}

# A stop of the unit takes the mount that needs it first.
detaches_and_attaches() {
  ctl stop csnap-attach@disk1 && [[ ! -e /sys/block/nbd3/pid ]] && ctl start stand-in && is_attached
}

shuts_down() {
  ctl exit
  until_true 150 eval '! kill -0 "$outer"'
}

# The lines of the kernel's log that name these, in this order.
in_order() {
  local log last=0 text line
  log=$(dmesg)
  for text; do
    line=$(grep -nF "$text" <<<"$log" | tail -n 1 | cut -d : -f 1) || true
    [[ $line && $line -gt $last ]] || { echo "not in order: $text"; return 1; }
    last=$line
  done
}

stopped_clean() { [[ ! -e /sys/block/nbd3/pid ]] && csnap status disk1 | grep -q '^disk1: stopped'; }
no_errors() { ! dmesg | grep -E 'I/O error|EXT4-fs (error|warning)'; }

prepare "$1"
expect "boots to a mounted device" boot
expect "server and agent are protected, and status has no warning" is_protected
expect "a restart of the agent detaches nothing" restarts_agent
expect "agent and server come back after kill -9, under the mount" kills_both
expect "a stop of the attach unit unmounts and detaches" detaches_and_attaches
# The kernel would leave out lines of systemd's where many come at once.
echo on >/proc/sys/kernel/printk_devkmsg
dmesg --clear
expect "shuts down" shuts_down
expect "in the order umount, detach, agent, server" in_order \
  "Unmounted mnt-disk1.mount" "Stopped csnap-attach@disk1" "Stopping csnap-agent" "Stopping csnap-server@disk1"
expect "the volume was closed in order" stopped_clean
expect "without an I/O error" no_errors
((FAILED == 0)) || dmesg | grep -E 'csnap|systemd|nbd' | tail -n 80
echo "$PASSED passed, $FAILED failed"
((FAILED == 0))
