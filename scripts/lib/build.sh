# Builds the addon, dist/ and the native test program. Sourced after common.sh by scripts/quickstart,
# test, native-test and mutants.
#
# B1 node-gyp uses the headers of the Node that runs; nothing is downloaded.
# B2 Every sanitizer has a build directory of its own, build-NAME/, made of links to the sources, so
#    that builds of different kinds never mix.

readonly BUILD_PACKAGES=(g++ make python3)
BUILD_JOBS=${CSNAP_BUILD_JOBS:-$(nproc)}

# configure DIRECTORY NAME GYP_OPTION...: writes the makefiles. Cheap, and needed when files come or go.
configure() {
  local directory=$1 name=$2
  shift 2
  quietly "$name-configure" "$PROJECT_DIR/node_modules/.bin/node-gyp" --directory="$directory" \
    --nodedir="$(node_prefix)" configure -- -Dstrict=true "$@"
}

# build_target DIRECTORY NAME TARGET: make is called itself, so that nothing else is built.
build_target() {
  quietly "$2" env BUILDTYPE=Release make -C "$1/build" --jobs="$BUILD_JOBS" "$3"
}

# The plain build serves the addon and the native tests; the core is compiled once for both. The tests
# are a target only where their header is installed.
configure_plain() {
  local tests=false
  [[ ! -e /usr/include/doctest/doctest.h ]] || tests=true
  configure "$PROJECT_DIR" "$1" -Dbuild_tests="$tests"
}

native_hash() { content_hash binding.gyp native package-lock.json; }

# The addon, build/Release/csnap.node.
build_addon() {
  local hash
  hash=$(native_hash)
  [[ -f $PROJECT_DIR/build/Release/csnap.node ]] && stamp_is addon "$hash" && return
  say "building the addon"
  unstamp addon
  configure_plain addon
  build_target "$PROJECT_DIR" addon csnap
  stamp addon "$hash"
}

# dist/, from nothing, so that no file of a former build stays.
build_dist() {
  local hash
  hash=$(content_hash src tsconfig.json package-lock.json)
  [[ -f $PROJECT_DIR/dist/cli/main.js ]] && stamp_is dist "$hash" && return
  say "building dist"
  unstamp dist
  rm -rf "$PROJECT_DIR/dist"
  (cd "$PROJECT_DIR" && quietly dist npm run --silent build:ts)
  chmod 755 "$PROJECT_DIR/dist/cli/main.js"
  stamp dist "$hash"
}

# Directory of the build for a -fsanitize= value; '' is the plain build, in the project itself.
native_test_directory() {
  case $1 in
    '') echo "$PROJECT_DIR" ;;
    address,undefined) echo "$PROJECT_DIR/build-asan" ;;
    thread) echo "$PROJECT_DIR/build-tsan" ;;
    *) echo "$PROJECT_DIR/build-${1//[^a-z]/-}" ;;
  esac
}

# build_native_tests SANITIZE: builds; the program is DIRECTORY/build/Release/native_tests with
# DIRECTORY as above.
build_native_tests() {
  local sanitize=$1 name=native-tests${1:+-${1//[^a-z]/-}} directory hash link
  directory=$(native_test_directory "$sanitize")
  hash=$(native_hash)
  [[ -x $directory/build/Release/native_tests ]] && stamp_is "$name" "$hash" && return
  say "building the native tests${sanitize:+ with -fsanitize=$sanitize}"
  unstamp "$name"
  if [[ ! $sanitize ]]; then
    configure_plain "$name"
  else
    mkdir -p "$directory"
    for link in binding.gyp native node_modules package.json; do
      ln -sfn "../$link" "$directory/$link"
    done
    configure "$directory" "$name" -Dbuild_tests=true -Dsanitize="$sanitize"
  fi
  build_target "$directory" "$name" native_tests
  stamp "$name" "$hash"
}
