# The table of suites: what each runs, what it reads, how many minutes it may take. Sourced by
# scripts/test and scripts/lib/run-suite.
#
# U1 Cheap suites come first, as a developer wants to learn of a mistake early; then the longest.
# U2 A budget includes building what only this suite needs, beside another suite.

readonly SUITES=(lint unit devices native native-asan vm native-tsan simulation schedules wire crash failover fuzz package)
readonly SLOTS_MAX=2

# Minutes in the default tier and with --full.
declare -rA BUDGET_QUICK=([lint]=4 [unit]=6 [vm]=20 [devices]=28 [native]=12 [native-asan]=20 [native-tsan]=25
  [simulation]=10 [schedules]=10 [wire]=10 [crash]=10 [failover]=12 [fuzz]=12 [package]=10 [mutants]=45)
declare -rA BUDGET_FULL=([lint]=4 [unit]=6 [vm]=30 [devices]=90 [native]=20 [native-asan]=30 [native-tsan]=40
  [simulation]=40 [schedules]=80 [wire]=12 [crash]=15 [failover]=45 [fuzz]=55 [package]=10 [mutants]=55)

# What a suite's outcome depends on, beside the tool versions; the rest depend on everything.
declare -rA INPUTS=(
  [native]='native binding.gyp package-lock.json scripts test/fixtures'
  [native-asan]='native binding.gyp package-lock.json scripts test/fixtures'
  [native-tsan]='native binding.gyp package-lock.json scripts test/fixtures'
  [simulation]='native binding.gyp package-lock.json scripts test/fixtures'
  [schedules]='src test/schedules test/support package-lock.json vitest.config.ts scripts'
)

readonly TEST_PACKAGES=(g++ make python3 git doctest-dev clang-format-14 clang-16 libclang-rt-16-dev
  nbdkit libnbd-bin file python3-libnbd fuse3 qemu-utils qemu-system-x86 nbd-client nbd-server fio
  busybox-static e2fsprogs xfsprogs gnutls-bin openssl curl systemd groff-base man-db
  etcd-server iproute2 util-linux faketime resource-agents libxml2-utils open-iscsi)

# The long simulations among the native tests are a suite of their own; each takes its share of the
# work by CSNAP_SHARD. Under the sanitizers they run at a twentieth of the size, with all others.
readonly SIMULATION='crash exploration*'
readonly SINGLE_STEPPED='crash exploration*,faults*,damage*,volume model*,terms*'

suite_lint() {
  check "biome" npx --no-install biome check .
  check "types" npx --no-install tsc -p tsconfig.test.json --noEmit
  check "clang-format" check_native_format
  check "shell syntax" check_shell_syntax
}

check_native_format() {
  find native \( -name '*.h' -o -name '*.cc' \) -print0 |
    xargs -0 clang-format-14 --dry-run --Werror
}

check_shell_syntax() {
  local file status=0
  while IFS= read -r -d '' file; do
    [[ $(head -n 1 "$file" | tr -d '\0') =~ ^#!.*sh$ || $file == *.sh ]] || continue
    bash -n "$file" || status=1
  done < <(find scripts .ci packaging test -type f -print0)
  return "$status"
}

suite_unit() { vitest unit unit; }
suite_wire() { vitest wire wire; }
suite_crash() { vitest crash crash; }
suite_failover() { vitest failover failover; }
# Two suites, as two processors share the virtual machines better than one after the other would.
suite_vm() { vitest vm vm nbd.test netlink.test reservation.test; }
suite_devices() { vitest devices vm attach systemd takeover; }

suite_native() { doctest native '' --test-case-exclude="$SIMULATION"; }
suite_native-asan() { doctest native-asan address,undefined; }
# Single-stepped simulations run on one thread, where ThreadSanitizer can find nothing.
suite_native-tsan() { doctest native-tsan thread --test-case-exclude="$SINGLE_STEPPED"; }

# One process per processor: a simulation runs single-stepped on one thread.
suite_simulation() {
  scripts/native-test --build-only
  local shards shard pid pids=() status=0
  shards=$(nproc)
  for ((shard = 0; shard < shards; shard++)); do
    CSNAP_SHARD=$shard/$shards doctest "simulation-$shard" '' --test-case="$SIMULATION" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  return "$status"
}

# Whole clusters in virtual time; one process per processor, as each runs on one thread.
suite_schedules() {
  local shards shard pid pids=() status=0
  shards=$(nproc)
  for ((shard = 0; shard < shards; shard++)); do
    CSNAP_SHARD=$shard/$shards vitest "schedules-$shard" schedules schedules.test &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  vitest mistakes schedules mistakes.test || status=$?
  return "$status"
}

suite_fuzz() {
  local seconds=30
  [[ $CSNAP_TIER == quick ]] || seconds=600
  counted scripts/fuzz --seconds "$seconds"
}

# Only with --mutants.
suite_mutants() { counted scripts/mutants; }

suite_package() { counted scripts/lib/package-test; }
