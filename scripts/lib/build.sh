# Builds the addon, dist/ and the native test program. Sourced after common.sh by scripts/quickstart,
# test, native-test and mutants.
#
# B1 node-gyp uses the headers of the Node that runs; nothing is downloaded.
# B2 Every sanitizer has a build directory of its own, build-NAME/, made of links to the sources, so
#    that builds of different kinds never mix.

readonly BUILD_PACKAGES=(g++ make python3)
BUILD_JOBS=${CSNAP_BUILD_JOBS:-$(nproc)}

run_node_gyp() {
  local directory=$1
  shift
  "$PROJECT_DIR/node_modules/.bin/node-gyp" --directory="$directory" \
    --nodedir="$(node_prefix)" "$@"
}

# The addon, build/Release/csnap.node.
build_addon() {
  local hash
  hash=$(content_hash binding.gyp native package-lock.json)
  [[ -f $PROJECT_DIR/build/Release/csnap.node ]] && stamp_is addon "$hash" && return
  say "building the addon"
  unstamp addon
  quietly addon-configure run_node_gyp "$PROJECT_DIR" configure
  quietly addon-build run_node_gyp "$PROJECT_DIR" build --jobs="$BUILD_JOBS"
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

# Name of the build directory for a -fsanitize= value; '' is the plain build.
native_test_directory() {
  case $1 in
    '') echo build-native ;;
    address,undefined) echo build-asan ;;
    thread) echo build-tsan ;;
    *) echo "build-${1//[^a-z]/-}" ;;
  esac
}

# build_native_tests SANITIZE: builds; the program is
# DIRECTORY/build/Release/native_tests with DIRECTORY as above.
build_native_tests() {
  local sanitize=$1 name directory hash link
  name=$(native_test_directory "$sanitize")
  directory=$PROJECT_DIR/$name
  hash=$(content_hash binding.gyp native package-lock.json)
  [[ -x $directory/build/Release/native_tests ]] && stamp_is "$name" "$hash" && return
  say "building the native tests in $name"
  unstamp "$name"
  mkdir -p "$directory"
  for link in binding.gyp native node_modules package.json; do
    ln -sfn "../$link" "$directory/$link"
  done
  quietly "$name-configure" run_node_gyp "$directory" configure -- \
    -Dbuild_tests=true -Dsanitize="$sanitize"
  # Make is called itself, for this target alone: the addon is of no use here.
  quietly "$name" env BUILDTYPE=Release make -C "$directory/build" --jobs="$BUILD_JOBS" \
    native_tests
  stamp "$name" "$hash"
}
