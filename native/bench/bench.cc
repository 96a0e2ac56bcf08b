#include "bench/bench.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace csnap::bench {

std::string option(int argc, char** argv, const std::string& name, const std::string& otherwise) {
  for (int i = 0; i + 1 < argc; i++)
    if (argv[i] == name) return argv[i + 1];
  return otherwise;
}

namespace {

void make_sparse(const std::string& path, uint64_t bytes) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    std::fprintf(stderr, "bench: %s: can't be made %llu bytes long: %s\n", path.c_str(),
                 static_cast<unsigned long long>(bytes), std::strerror(errno));
    std::exit(1);
  }
  ::close(fd);
}

}  // namespace

Files::Files(const std::string& directory, uint64_t origin_bytes, uint64_t store_bytes,
             uint64_t chunk_bytes)
    : origin_path(directory + "/origin.img"), store_path(directory + "/store.csnap") {
  make_sparse(origin_path, origin_bytes);
  make_sparse(store_path, store_bytes);
  FileDeviceOptions device;
  store = must(FileDevice::open(store_path, device), "store");
  device.small_folios = true;
  origin = must(FileDevice::open(origin_path, device), "origin");
  identity.text = "bench";
  CreateOptions create;
  create.volume_name = "bench";
  create.origin = identity;
  create.origin_bytes = origin_bytes;
  create.store_bytes = store_bytes;
  create.chunk_bytes = chunk_bytes;
  must(create_store(*store, create), "init");
}

Files::~Files() {
  ::unlink(origin_path.c_str());
  ::unlink(store_path.c_str());
}

VolumeOptions Files::options() {
  VolumeOptions options;
  options.origin = origin.get();
  options.store = store.get();
  options.identity = identity;
  options.index = IndexOptions::for_this_machine();
  return options;
}

std::unique_ptr<Store> open_store(Device& store, Device& origin, const IndexOptions& index) {
  StoreOptions options;
  options.store = &store;
  options.origin = &origin;
  options.index = index;
  options.make_uuid = [] {
    const Uuid uuid = Uuid::random();
    UuidBytes bytes;
    std::copy(std::begin(uuid.bytes), std::end(uuid.bytes), bytes.begin());
    return bytes;
  };
  return must(Store::open(std::move(options), must(load_superblock(store), "superblock")), "open");
}

Status io(Volume& volume, View& view, IoOp op, uint64_t offset, uint64_t length, void* data) {
  IoRequest request;
  request.op = op;
  request.view = &view;
  request.offset = offset;
  request.length = length;
  request.data = data;
  return volume.run(request);
}

}  // namespace csnap::bench

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "scale") return csnap::bench::scale(argc, argv);
  if (what == "write-cost") return csnap::bench::write_cost(argc, argv);
  if (what == "index") return csnap::bench::index_lookups(argc, argv);
  if (what == "load") return csnap::bench::load_store(argc, argv);
  std::fprintf(
      stderr,
      "usage: native_bench scale|write-cost|index --dir DIRECTORY [options]\n"
      "       native_bench load --store FILE --origin FILE --exceptions N --snapshots N\n");
  return 2;
}
