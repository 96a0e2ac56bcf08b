# What scripts/quickstart, test, native-test, fuzz and mutants share: messages, content stamps, and
# installing what is missing. Sourced, never run. Expects PROJECT_DIR.
#
# C1 Nothing is installed that is there already, and only root installs Debian packages; anybody else
#    gets the one command that does it.
# C2 A step is left out only if the content (not the time) of all its inputs is what it was when the
#    step last succeeded, and its result is still there.

readonly STAMP_DIR=$PROJECT_DIR/.cache/stamps
readonly LOG_DIR=$PROJECT_DIR/build/log

# A line about what the script does: say WHAT...
say() { echo "== $*"; }

die() {
  echo "${0##*/}: $*" >&2
  exit 1
}

usage_error() {
  echo "${0##*/}: $* (see scripts/${0##*/} --help)" >&2
  exit 2
}

# Prints one hash over names and contents of all files below the given paths of the project.
content_hash() {
  (
    cd "$PROJECT_DIR"
    for path; do
      [[ ! -e $path ]] || find "$path" \( -name node_modules -o -name .git -o -name .cache \
        -o -path ./build -o -path './build-*' -o -path ./dist \) -prune -o -type f -print0
    done | LC_ALL=C sort -z | xargs -0 --no-run-if-empty sha256sum
    echo "$(node --version) $(uname -m)"
  ) | sha256sum | cut -d ' ' -f 1
}

# stamp_is NAME HASH: the step NAME last succeeded with these inputs (C2).
stamp_is() { [[ -r $STAMP_DIR/$1 && $(<"$STAMP_DIR/$1") == "$2" ]]; }

stamp() {
  mkdir -p "$STAMP_DIR"
  echo "$2" >"$STAMP_DIR/$1"
}

unstamp() { rm -f "$STAMP_DIR/$1"; }

# Runs a command with its output in a log; shows the log's end if the command fails.
# Usage: quietly LOGNAME COMMAND...
quietly() {
  local log=$LOG_DIR/$1.log status=0
  shift
  mkdir -p "$LOG_DIR"
  "$@" >"$log" 2>&1 </dev/null || status=$?
  ((status == 0)) && return
  tail -n 40 "$log" >&2
  die "this failed with status $status: $* (all of its output: ${log#"$PROJECT_DIR"/})"
}

# Installs the Debian packages that are missing, in one go.
need_packages() {
  command -v dpkg-query >/dev/null || die "this script installs Debian packages; on another system" \
    "install the counterparts of: $*"
  local missing=() package
  for package; do
    [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
      missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  [[ $(id -u) == 0 ]] || die "Debian packages are missing; install them as root, then run this again:" \
    "apt-get install --no-install-recommends ${missing[*]}"
  say "installing Debian packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  quietly apt-update apt-get update
  quietly apt-install apt-get install --yes --no-install-recommends "${missing[@]}"
}

readonly NODE_HELP="csnap needs Node.js 20 or newer with its headers. The archive of nodejs.org holds
both; as root: tar -xJf node-v22.*-linux-x64.tar.xz --strip-components=1 -C /usr/local
(Debian 12's own package nodejs is version 18, which is too old.)"

# Node's installation directory, the one whose include/node/ belongs to the running Node.
node_prefix() {
  node -p 'path.dirname(path.dirname(process.execPath))'
}

# Stops, with the way out, unless Node >= 20, npm and matching headers are there.
need_node() {
  local version prefix header
  command -v node >/dev/null || die "there is no node command. $NODE_HELP"
  version=$(node -p 'process.versions.node')
  ((${version%%.*} >= 20)) || die "node is version $version. $NODE_HELP"
  command -v npm >/dev/null || die "there is no npm command. $NODE_HELP"
  prefix=$(node_prefix)
  header=$prefix/include/node/node_version.h
  [[ -r $header ]] || die "$header is missing. $NODE_HELP"
  local found
  found=$(awk '$1 == "#define" && $2 ~ /^NODE_(MAJOR|MINOR|PATCH)_VERSION$/ { printf "%s%s", dot, $3; dot = "." }' "$header")
  [[ $found == "$version" ]] || die "$header is of version $found, but node is $version. $NODE_HELP"
}

# npm packages as package-lock.json names them.
need_npm_packages() {
  local hash
  hash=$(content_hash package.json package-lock.json)
  [[ -d $PROJECT_DIR/node_modules ]] && stamp_is npm "$hash" && return
  say "installing npm packages"
  unstamp npm
  (cd "$PROJECT_DIR" && quietly npm npm ci --ignore-scripts --no-audit --no-fund)
  stamp npm "$hash"
}
