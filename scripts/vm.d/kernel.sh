# Puts what a test VM needs into the cache: an unpacked Debian kernel with its modules, a static
# busybox and the initramfs made of them. Sourced by scripts/vm, by nothing else.
# shellcheck shell=bash disable=SC2034
#
# K1 A kernel is never installed into the host: its package is downloaded and unpacked, no
#    maintainer script runs; the host's apt state (lists, cache, preferences) stays as it is.
# K2 The mirror is the one the host's own apt sources name. Signatures are checked as apt does.
# K3 A kernel directory in the cache is complete: it is built beside its place and then renamed,
#    under a lock, so concurrent and interrupted runs never see half of one.

# Suites that may hold a kernel, in the order they are tried.
kernel_suites() {
  case $1 in
    6.1) echo bookworm ;;
    6.12) echo bookworm-backports trixie ;;
    *) echo trixie-backports sid ;;
  esac
}

# Directories of modules no test needs; without them the cache and depmod are three times smaller.
readonly UNUSED_MODULES=(sound drivers/gpu drivers/media drivers/staging drivers/iio drivers/hwmon
  drivers/input drivers/bluetooth drivers/usb drivers/infiniband drivers/isdn drivers/comedi
  drivers/platform drivers/net/ethernet drivers/net/wireless drivers/net/usb drivers/leds
  drivers/mfd drivers/power drivers/regulator drivers/thunderbolt drivers/mmc drivers/mtd)

# Modules the guest needs before it can see the host's tree. Names as in file names, "-" or "_".
readonly BOOT_MODULES=(virtio_pci virtio_console virtio_blk virtio-rng 9pnet_virtio 9p overlay)

install_qemu() {
  command -v qemu-system-x86_64 >/dev/null && return
  [[ $(id -u) == 0 ]] || die 125 "qemu-system-x86_64 is missing and this is not root;" \
    "install it with: apt-get install qemu-system-x86"
  command -v apt-get >/dev/null || die 125 "qemu-system-x86_64 is missing; install QEMU for x86"
  note "installing qemu-system-x86"
  local log=$1/apt.log
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes \
    --no-install-recommends qemu-system-x86; } >"$log" 2>&1 </dev/null ||
    die 125 "could not install qemu-system-x86: $(tail -n 1 "$log")"
}

# Prints the address of the host's Debian mirror: where apt finds the host's own release.
debian_mirror() {
  command -v apt-get >/dev/null || die 125 "kernel packages are missing and apt-get is too;" \
    "fill \$CSNAP_VM_CACHE on a Debian host"
  local codename uri
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  # shellcheck disable=SC2016
  uri=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' \
    'Created-By: Packages' | awk -v r="$codename" '$1 == r && $2 == "main" { print $3; exit }')
  [[ $uri ]] || die 125 "the apt sources of this host name no Debian mirror for '$codename'" \
    "(component main); add one, kernels are taken from there"
  echo "$uri"
}

# A private apt (K1) that knows only the given suites. Usage: private_apt DIR SUITE...
private_apt() {
  local dir=$1 suite options='arch=amd64'
  shift
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  [[ -r $keyring ]] && options+=" signed-by=$keyring"
  mkdir -p "$dir"/lists/partial "$dir"/archives/partial
  : >"$dir/status"
  for suite; do echo "deb [$options] $MIRROR $suite main"; done >"$dir/sources.list"
  cat >"$dir/apt.conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State "$dir";
Dir::State::status "$dir/status";
Dir::State::lists "$dir/lists";
Dir::Cache "$dir";
Dir::Cache::archives "$dir/archives";
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "root";
APT::Architecture "amd64";
Acquire::Languages "none";
CONF
  apt-get -c "$dir/apt.conf" --quiet update >"$dir/update.log" 2>&1 </dev/null
}

# Prints the packages that hold kernel $2 (image, and modules where they are apart), or nothing.
kernel_packages() {
  apt-cache -c "$1/apt.conf" show linux-image-amd64 2>/dev/null | awk -v want="$2." '
    /^Version: /  { hit = index($2, want) == 1 }
    /^Depends: / && hit {
      gsub(/\([^)]*\)|,/, " ")
      for (i = 2; i <= NF; i++) if ($i ~ /^linux-(image|modules|binary)-[0-9]/) print $i
      exit
    }'
}

download_kernel() {
  local kernel=$1 work=$2 suite packages=() more=() package
  note "looking for kernel $kernel in the host's Debian mirror"
  for suite in $(kernel_suites "$kernel"); do
    rm -rf "$work/apt"
    private_apt "$work/apt" "$suite" || continue
    mapfile -t packages < <(kernel_packages "$work/apt" "$kernel")
    [[ ${#packages[@]} == 0 ]] || break
  done
  [[ ${#packages[@]} != 0 ]] || die 125 "no kernel $kernel in $(kernel_suites "$kernel") of" \
    "$MIRROR: $(tail -n 1 "$work/apt/update.log")"
  # An image package without modules names the package that has them.
  for package in "${packages[@]}"; do
    # shellcheck disable=SC2207
    more=($(apt-cache -c "$work/apt/apt.conf" depends "$package" |
      awk '$1 == "Depends:" && $2 ~ /^linux-(modules|binary)-[0-9]/ { print $2 }'))
    packages+=("${more[@]}")
  done
  note "downloading ${packages[*]}"
  mkdir -p "$work/deb" "$work/root"
  (cd "$work/deb" && apt-get -c "$work/apt/apt.conf" --quiet download "${packages[@]}") \
    >"$work/download.log" 2>&1 </dev/null ||
    die 125 "could not download ${packages[*]}: $(tail -n 1 "$work/download.log")"
  for package in "$work"/deb/*.deb; do dpkg-deb -x "$package" "$work/root"; done
}

# The host's own busybox if it is a static one, else one from the archive, unpacked only (K1).
provide_busybox() {
  local work=$1 own
  own=$(command -v busybox || true)
  if [[ $own ]] && ! ldd "$own" >/dev/null 2>&1; then
    cp -L "$own" "$work/out/busybox"
    return
  fi
  note "downloading busybox-static"
  private_apt "$work/apt-busybox" bookworm ||
    die 125 "apt-get update failed: $(tail -n 1 "$work/apt-busybox/update.log")"
  mkdir -p "$work/busybox"
  (cd "$work/busybox" && apt-get -c "$work/apt-busybox/apt.conf" --quiet download \
    busybox-static && dpkg-deb -x busybox-static_*.deb .) >"$work/download.log" 2>&1 </dev/null ||
    die 125 "could not download busybox-static: $(tail -n 1 "$work/download.log")"
  cp -L "$(find "$work/busybox" -path '*bin/busybox' | head -n 1)" "$work/out/busybox"
}

# A bzImage unpacks itself, which takes seconds in emulation. Its payload, found through the boot
# protocol's header, is the ELF kernel that QEMU starts directly (PVH). Fails where that won't work.
unpack_vmlinux() {
  local image=$1 target=$2 setup_sects offset length
  setup_sects=$(od -An -tu1 -j $((0x1f1)) -N1 "$image")
  offset=$(($(od -An -tu4 -j $((0x248)) -N4 "$image") + (setup_sects + 1) * 512))
  length=$(($(od -An -tu4 -j $((0x24c)) -N4 "$image") - 4)) # the last 4 bytes are its size
  local decompress
  case $(od -An -tx1 -j "$offset" -N4 "$image" | tr -d ' ') in
    fd377a58) decompress=xz ;;
    28b52ffd) decompress=zstd ;;
    *) return 1 ;;
  esac
  command -v $decompress >/dev/null || return 1
  # The rest is read too: a tail ended by SIGPIPE would count as a failure.
  tail -c +$((offset + 1)) "$image" | { head -c "$length" && cat >/dev/null; } |
    $decompress -dc >"$target" 2>/dev/null
  [[ $(od -An -tx1 -N4 "$target" | tr -d ' ') == 7f454c46 ]]
}

# The part of the initramfs that is the same in every run. Usage: build_initrd OUT MODULES
build_initrd() {
  local out=$1 modules=$2 tree=$1/initrd.d file
  mkdir -p "$tree"/{bin,dev,proc,sys,modules,host,over,new}
  cp "$out/busybox" "$tree/bin/busybox"
  # Dependencies first. Built-in drivers are not in modules.dep and need no loading.
  awk -v wanted="${BOOT_MODULES[*]}" '
    function visit(path,   i, n, list) {
      if (path in seen) return
      seen[path] = 1
      n = split(deps[path], list, " ")
      for (i = 1; i <= n; i++) visit(list[i])
      print path
    }
    { path = $1; sub(/:$/, "", path); name = path; sub(/.*\//, "", name); sub(/\.ko$/, "", name)
      $1 = ""; deps[path] = $0; at[name] = path }
    END { n = split(wanted, w, " "); for (i = 1; i <= n; i++) if (w[i] in at) visit(at[w[i]]) }
  ' "$modules/modules.dep" >"$out/boot-modules"
  while read -r file; do
    cp "$modules/$file" "$tree/modules/"
    echo "${file##*/}" >>"$tree/modules/order"
  done <"$out/boot-modules"
  pack_initrd "$tree" "$out/initrd.cpio"
  rm -rf "$tree"
}

# Usage: pack_initrd TREE FILE. The busybox beside FILE, or the one already in the cache, packs.
pack_initrd() {
  (cd "$1" && find . -mindepth 1 | "$BUSYBOX" cpio -o -H newc 2>/dev/null) >"$2"
}

build_kernel_dir() {
  local kernel=$1 work=$2 release modules directory image
  MIRROR=$(debian_mirror)
  download_kernel "$kernel" "$work"
  mkdir -p "$work/out"
  provide_busybox "$work"
  BUSYBOX=$work/out/busybox
  modules=$(find "$work/root" -type d -path '*lib/modules/*' -name kernel | head -n 1)
  [[ $modules ]] || die 125 "the packages of kernel $kernel hold no modules"
  modules=${modules%/kernel}
  release=${modules##*/}
  note "unpacking kernel $release"
  image=$(find "$work/root" -type f \( -name "vmlinuz-$release" -o -name vmlinuz \) | head -n 1)
  [[ $image ]] || die 125 "the packages of kernel $kernel hold no vmlinuz"
  mv "$image" "$work/vmlinuz"
  for directory in "${UNUSED_MODULES[@]}"; do rm -rf "$modules/kernel/$directory"; done
  # depmod and modprobe are busybox's here and in the guest; plain modules also load faster.
  find "$modules" -name '*.ko.xz' -print0 | xargs -0 -r -n 50 "$BUSYBOX" unxz
  mkdir -p "$work/out/lib/modules"
  mv "$modules" "$work/out/lib/modules/$release"
  modules=$work/out/lib/modules/$release
  "$BUSYBOX" depmod -b "$work/out" "$release" ||
    die 125 "depmod failed for kernel $release"
  unpack_vmlinux "$work/vmlinuz" "$work/out/kernel" || cp "$work/vmlinuz" "$work/out/kernel"
  build_initrd "$work/out" "$modules"
  echo "$release" >"$work/out/release"
}

# Makes $CACHE/kernels/$1 exist, and sets KERNEL_DIR and BUSYBOX.
provide_kernel() {
  local kernel=$1 work
  KERNEL_DIR=$CACHE/kernels/$kernel
  if [[ ! -e $KERNEL_DIR/release ]]; then
    mkdir -p "$CACHE/kernels" 2>/dev/null || die 125 "cannot create the cache $CACHE;" \
      "set CSNAP_VM_CACHE to a directory that can be written"
    exec {lock}>"$CACHE/lock"
    flock "$lock"
    if [[ ! -e $KERNEL_DIR/release ]]; then
      rm -rf "$CACHE"/build.* # left by a run that was killed: the lock is ours
      work=$(mktemp -d "$CACHE/build.XXXXXX")
      BUILD_DIR=$work
      build_kernel_dir "$kernel" "$work"
      rm -rf "$KERNEL_DIR"
      mv "$work/out" "$KERNEL_DIR"
      rm -rf "$work"
      BUILD_DIR=
    fi
    exec {lock}>&-
  fi
  BUSYBOX=$KERNEL_DIR/busybox
}
