// What the connection tests stand on: a real volume on memory devices, a set of connections, and a
// client that speaks raw bytes with a time limit. Callers: connection_*_test.cc.
#pragma once

#include <doctest/doctest.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "io/file_device.h"
#include "nbd/connection_set.h"
#include "testing/faulty_device.h"
#include "testing/lapsing_device.h"

namespace csnap::nbd {

// A device whose syncs can be held back, so that writes that wait for a commit stay parked.
class GateDevice final : public Device {
 public:
  explicit GateDevice(Device& below) : below_(below) {}

  void close_gate() {
    MutexLock lock(mutex_);
    closed_ = true;
  }
  void open_gate() {
    MutexLock lock(mutex_);
    closed_ = false;
    changed_.notify_all();
  }
  // Waits until a sync stands before the gate.
  void wait_for_sync() {
    MutexLock lock(mutex_);
    while (waiting_ == 0) changed_.wait(lock);
  }

  uint64_t size_bytes() const override { return below_.size_bytes(); }
  const std::string& name() const override { return below_.name(); }
  Status read(uint64_t offset, void* data, size_t length) override {
    return below_.read(offset, data, length);
  }
  bool read_nowait(uint64_t offset, void* data, size_t length) override {
    return below_.read_nowait(offset, data, length);
  }
  Status write(uint64_t offset, const void* data, size_t length) override {
    return below_.write(offset, data, length);
  }
  Status sync() override {
    {
      MutexLock lock(mutex_);
      waiting_++;
      changed_.notify_all();
      while (closed_) changed_.wait(lock);
      waiting_--;
    }
    return below_.sync();
  }
  Status zero(uint64_t offset, uint64_t length, ZeroMode mode) override {
    return below_.zero(offset, length, mode);
  }
  Status discard(uint64_t offset, uint64_t length) override {
    return below_.discard(offset, length);
  }
  Status allocate(uint64_t offset, uint64_t length) override {
    return below_.allocate(offset, length);
  }
  DeviceExtent extent_at(uint64_t offset, uint64_t length) override {
    return below_.extent_at(offset, length);
  }

 private:
  Device& below_;
  Mutex mutex_;
  CondVar changed_;
  bool closed_ = false;
  size_t waiting_ = 0;
};

struct Answer {
  uint32_t error = 0;
  std::vector<uint8_t> data;
};

class Client {
 public:
  static constexpr int kTimeLimitMs = 30000;

  explicit Client(UniqueFd socket) : socket_(std::move(socket)) {}

  int fd() const { return socket_.get(); }
  void close() { socket_.reset(); }
  void half_close() { shutdown(socket_.get(), SHUT_WR); }

  void send(const void* data, size_t length) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    while (length > 0) {
      const ssize_t n = ::send(socket_.get(), bytes, length, MSG_NOSIGNAL);
      REQUIRE(n > 0);
      bytes += n;
      length -= static_cast<size_t>(n);
    }
  }
  static Request header(Command command, uint64_t cookie, uint64_t offset, uint32_t length,
                        uint16_t flags = 0) {
    Request request;
    request.magic = kRequestMagic;
    request.flags = flags;
    request.command = static_cast<uint16_t>(command);
    request.cookie = cookie;
    request.offset = offset;
    request.length = length;
    return request;
  }
  void request(Command command, uint64_t cookie, uint64_t offset, uint32_t length,
               uint16_t flags = 0, const std::vector<uint8_t>& payload = {}) {
    const Request bytes = header(command, cookie, offset, length, flags);
    send(&bytes, sizeof bytes);
    if (!payload.empty()) send(payload.data(), payload.size());
  }

  // False: the connection ended (or was reset) first.
  bool receive(void* data, size_t length) {
    auto* bytes = static_cast<uint8_t*>(data);
    while (length > 0) {
      pollfd ready = {socket_.get(), POLLIN, 0};
      const int count = poll(&ready, 1, kTimeLimitMs);
      REQUIRE_MESSAGE(count == 1, "the server is silent");
      const ssize_t n = recv(socket_.get(), bytes, length, 0);
      if (n <= 0) return false;
      bytes += n;
      length -= static_cast<size_t>(n);
    }
    return true;
  }
  bool at_end() {
    uint8_t byte;
    return !receive(&byte, 1);
  }
  // One simple reply; `reads` tells how much data a cookie's success brings.
  uint64_t simple(Answer& answer, const std::map<uint64_t, uint32_t>& reads = {}) {
    SimpleReply reply;
    REQUIRE(receive(&reply, sizeof reply));
    REQUIRE(reply.magic == kSimpleReplyMagic);
    answer.error = reply.error;
    answer.data.clear();
    const auto found = reads.find(reply.cookie);
    if (answer.error == 0 && found != reads.end()) {
      answer.data.resize(found->second);
      REQUIRE(receive(answer.data.data(), answer.data.size()));
    }
    return reply.cookie;
  }
  // A request and its simple reply.
  Answer ask(Command command, uint64_t offset, uint32_t length, uint16_t flags = 0,
             const std::vector<uint8_t>& payload = {}) {
    const uint64_t cookie = next_cookie_++;
    request(command, cookie, offset, length, flags, payload);
    Answer answer;
    std::map<uint64_t, uint32_t> reads;
    if (command == Command::READ) reads[cookie] = length;
    const uint64_t answered = simple(answer, reads);
    CHECK(answered == cookie);
    return answer;
  }
  uint32_t write(uint64_t offset, uint32_t length, uint8_t value) {
    return ask(Command::WRITE, offset, length, 0, std::vector<uint8_t>(length, value)).error;
  }
  // One chunk of a structured reply; returns its type.
  uint16_t chunk(uint64_t& cookie, bool& done, std::vector<uint8_t>& payload) {
    Chunk head;
    REQUIRE(receive(&head, sizeof head));
    REQUIRE(head.magic == kChunkMagic);
    cookie = head.cookie;
    done = (head.flags & kChunkFlagDone) != 0;
    payload.resize(head.length);
    if (!payload.empty()) REQUIRE(receive(payload.data(), payload.size()));
    return head.type;
  }

 private:
  UniqueFd socket_;
  uint64_t next_cookie_ = 0x1000;
};

struct Rig {
  static constexpr uint64_t kChunkBytes = 16384;
  static constexpr uint64_t kMemoryBytesMax = uint64_t{1} << 30;

  explicit Rig(uint64_t origin_bytes = 4 << 20, uint64_t store_bytes = 32 << 20,
               uint64_t budget_bytes = ConnectionSet::kBudgetBytes,
               uint64_t stall_ms = PayloadBudget::kStallMs)
      : origin_memory("origin", origin_bytes <= kMemoryBytesMax ? origin_bytes : 0),
        store_memory("store", store_bytes),
        origin_file(origin_bytes <= kMemoryBytesMax ? nullptr : sparse_file(origin_bytes)),
        origin_faults(origin_file ? static_cast<Device&>(*origin_file) : origin_memory, 1),
        store_faults(store_memory, 1),
        origin_lapsing(origin_faults, lapse),
        store_gate(store_faults) {
    OriginIdentity identity;
    identity.text = "test";
    CreateOptions create;
    create.volume_name = "vol";
    create.origin = identity;
    create.origin_bytes = origin_bytes;
    create.store_bytes = store_bytes;
    create.chunk_bytes = kChunkBytes;
    const Status made = create_store(store_memory, create);
    REQUIRE_MESSAGE(made.ok(), made.to_text());
    VolumeOptions options;
    options.origin = &origin_lapsing;
    options.store = &store_gate;
    options.identity = identity;
    options.gate = &grant;
    Result<std::unique_ptr<Volume>> opened = Volume::open(std::move(options));
    REQUIRE_MESSAGE(opened.ok(), opened.status().to_text());
    volume = opened.take();
    Connection::Callbacks callbacks;
    callbacks.problem = [this](uint64_t, const std::string& message) {
      MutexLock lock(mutex);
      problems.push_back(message);
    };
    callbacks.closed = [this](uint64_t id, const std::string& reason) {
      MutexLock lock(mutex);
      closed[id] = reason;
      closed_cond.notify_all();
    };
    set = std::make_unique<ConnectionSet>(*volume, callbacks, budget_bytes, stall_ms);
  }
  ~Rig() {
    store_gate.open_gate();
    set.reset();
  }

  ConnectionOptions options() {
    ConnectionOptions options;
    options.view = volume->open_origin();
    options.read_only = false;
    return options;
  }
  Client connect(ConnectionOptions connection, int domain = AF_UNIX) {
    int fds[2];
    if (domain == AF_UNIX)
      REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    else
      tcp_pair(fds);
    connection.socket = UniqueFd(fds[0]);
    Result<uint64_t> id = set->serve(std::move(connection));
    REQUIRE_MESSAGE(id.ok(), id.status().to_text());
    last_id = id.value();
    return Client(UniqueFd(fds[1]));
  }
  Client connect() { return connect(options()); }
  Client connect_structured() {
    ConnectionOptions connection = options();
    connection.structured_replies = true;
    connection.base_allocation_id = 5;
    return connect(std::move(connection));
  }
  std::shared_ptr<View> snapshot(const std::string& name) {
    Result<SnapshotInfo> made = volume->create_snapshot(name, false, 0, {});
    REQUIRE_MESSAGE(made.ok(), made.status().to_text());
    return volume->open_snapshot(made.value().uuid).take();
  }
  std::string wait_closed(uint64_t id) {
    MutexLock lock(mutex);
    while (closed.count(id) == 0) closed_cond.wait(lock);
    return closed[id];
  }
  ConnectionStats stats(uint64_t id) {
    for (const ConnectionStats& stats : set->list())
      if (stats.id == id) return stats;
    return {};
  }

  static void tcp_pair(int fds[2]) {
    const UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    auto* raw = reinterpret_cast<sockaddr*>(&address);
    REQUIRE(bind(listener.get(), raw, sizeof address) == 0);
    REQUIRE(listen(listener.get(), 1) == 0);
    REQUIRE(getsockname(listener.get(), raw, &length) == 0);
    fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(connect_to(fds[1], raw) == 0);
    fds[0] = accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC);
    REQUIRE(fds[0] >= 0);
  }
  static int connect_to(int fd, const sockaddr* address) {
    return ::connect(fd, address, sizeof(sockaddr_in));
  }

  // A file in memory, all hole, for origins of gigabytes.
  static std::unique_ptr<FileDevice> sparse_file(uint64_t bytes) {
    const UniqueFd fd(memfd_create("origin", MFD_CLOEXEC));
    REQUIRE(ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
    auto opened = FileDevice::open("/proc/self/fd/" + std::to_string(fd.get()), {});
    REQUIRE_MESSAGE(opened.ok(), opened.status().to_text());
    return opened.take();
  }

  MemoryDevice origin_memory, store_memory;
  std::unique_ptr<FileDevice> origin_file;
  FaultyDevice origin_faults, store_faults;
  Lapse lapse;
  Gate grant{lapse.clock()};  // for ever, unless a test extends it
  LapsingDevice origin_lapsing;
  GateDevice store_gate;
  std::unique_ptr<Volume> volume;
  Mutex mutex;
  CondVar closed_cond;
  std::map<uint64_t, std::string> closed;
  std::vector<std::string> problems;
  uint64_t last_id = 0;
  std::unique_ptr<ConnectionSet> set;
};

}  // namespace csnap::nbd
