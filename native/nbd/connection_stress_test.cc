// Connections under load, under attack and at their end: several clients, slow ones, ones that
// vanish, volumes that fail, servers that stop. The numbers are the checks of the conformance list.
#include <atomic>

#include "nbd/connection_test_rig.h"
#include "testing/rng.h"

namespace csnap::nbd {
namespace {

using Bytes = std::vector<uint8_t>;
constexpr uint32_t kMiB = 1 << 20;

TEST_CASE("44: a client that never reads is held at a bound, others go on, nothing is lost") {
  for (const bool structured : {false, true}) {
    Rig rig;
    Client slow = structured ? rig.connect_structured() : rig.connect();
    const uint64_t id = rig.last_id;
    Client other = rig.connect();
    CHECK(other.write(0, kMiB, 5) == 0);
    constexpr uint64_t kReads = 200;
    for (uint64_t i = 0; i < kReads; i++) slow.request(Command::READ, i, 0, kMiB);
    // What it holds settles at the bound: wait until it stands there.
    while (rig.stats(id).in_flight < 64) {
      CHECK(other.ask(Command::READ, 0, 4096).data == Bytes(4096, 5));
    }
    for (int i = 0; i < 200; i++) {
      CHECK(other.ask(Command::READ, 0, 4096).data == Bytes(4096, 5));
      CHECK(rig.stats(id).in_flight == 64);
    }
    const Bytes wanted(kMiB, 5);
    for (uint64_t i = 0; i < kReads; i++) {
      if (structured) {
        uint64_t cookie;
        bool done;
        Bytes payload;
        CHECK(slow.chunk(cookie, done, payload) == 1);
        CHECK(done);
        CHECK(std::memcmp(payload.data() + 8, wanted.data(), kMiB) == 0);
      } else {
        Answer answer;
        std::map<uint64_t, uint32_t> reads;
        for (uint64_t j = 0; j < kReads; j++) reads[j] = kMiB;
        slow.simple(answer, reads);
        CHECK(answer.data == wanted);
      }
    }
  }
}

TEST_CASE("44: small requests of a client that never reads are bounded by their number") {
  Rig rig;
  Client slow = rig.connect();
  const uint64_t id = rig.last_id;
  Client other = rig.connect();
  // As many as the socket takes.
  const Request request = Client::header(Command::READ, 1, 0, 32768);
  uint64_t sent = 0;
  while (send(slow.fd(), &request, sizeof request, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof request) {
    sent++;
    if (sent % 64 == 0) CHECK(other.ask(Command::READ, 0, 512).error == 0);
  }
  CHECK(sent > 256);
  CHECK(rig.stats(id).in_flight <= 256);
  slow.close();
  rig.wait_closed(id);
  CHECK(other.ask(Command::READ, 0, 512).error == 0);
}

TEST_CASE("memory of a client that stalls is taken back when another one needs it (Y2)") {
  Rig rig(64 << 20, 64 << 20, PayloadBudget::kLimitBytesMin, 1);
  std::vector<Client> stalled;
  std::vector<uint64_t> ids;
  for (int i = 0; i < 2; i++) {
    stalled.push_back(rig.connect());
    ids.push_back(rig.last_id);
    stalled.back().request(Command::READ, 1, 0, kPayloadBytesMax);
    while (rig.stats(ids.back()).in_flight == 0) {
    }
  }
  Client needy = rig.connect();
  CHECK(needy.write(0, kPayloadBytesMax, 7) == 0);
  size_t cut = 0;
  MutexLock lock(rig.mutex);
  for (const uint64_t id : ids) cut += rig.closed.count(id);
  CHECK(cut == 1);
}

// A large read goes from the page cache to the socket: it shows what is there when it is sent.
TEST_CASE("large reads of what the page cache holds are not copied") {
  constexpr uint32_t kLarge = 1 << 20;
  for (const bool structured : {false, true}) {
    Rig rig(Rig::kMemoryBytesMax + 4096);
    Client client = structured ? rig.connect_structured() : rig.connect();
    Client writer = rig.connect();
    CHECK(writer.write(4096, kLarge, 1) == 0);
    if (rig.origin_file->cached_file(4096, kLarge) < 0) {
      MESSAGE("not run: this kernel has no cachestat(2)");
      return;
    }
    client.request(Command::READ, 7, 4096, kLarge);
    // The answer has begun.
    pollfd begun = {client.fd(), POLLIN, 0};
    REQUIRE(poll(&begun, 1, Client::kTimeLimitMs) == 1);
    CHECK(writer.write(4096, kLarge, 2) == 0);
    std::vector<uint8_t> data(kLarge);
    if (structured) {
      OffsetData head;
      REQUIRE(client.receive(&head, sizeof head));
      CHECK(head.chunk.cookie == 7);
      CHECK(head.chunk.length == 8 + kLarge);
      CHECK(head.chunk.flags == kChunkFlagDone);
      CHECK(head.offset == 4096);
    } else {
      SimpleReply head;
      REQUIRE(client.receive(&head, sizeof head));
      CHECK(head.cookie == 7);
      CHECK(head.error == 0);
    }
    REQUIRE(client.receive(data.data(), data.size()));
    CHECK(data.back() == 2);
    for (const uint8_t byte : data) REQUIRE((byte == 1 || byte == 2));
    // The stream is in step, also behind a read of nothing by the same slot.
    CHECK(writer.ask(Command::READ, 4096, kLarge).data == std::vector<uint8_t>(kLarge, 2));
    CHECK(writer.ask(Command::READ, 4096, 0).error == 0);
    // Zeros are looked for.
    CHECK(writer.write(4096, kLarge, 0) == 0);
    bool done = false;
    uint64_t cookie;
    std::vector<uint8_t> payload;
    if (!structured) continue;
    client.request(Command::READ, 8, 4096, kLarge);
    CHECK(client.chunk(cookie, done, payload) == static_cast<uint16_t>(ChunkType::OFFSET_HOLE));
    CHECK(done);
  }
}

TEST_CASE("a large read that fails when its answer has begun cuts the connection and says so") {
  constexpr uint32_t kLarge = 1 << 20;
  Rig rig(Rig::kMemoryBytesMax + 4096);
  Client client = rig.connect();
  for (uint32_t i = 0; i < 16; i++) CHECK(client.write(i * kLarge, kLarge, 1) == 0);
  if (rig.origin_file->cached_file(0, kLarge) < 0) {
    MESSAGE("not run: this kernel has no cachestat(2)");
    return;
  }
  // More than the socket takes.
  for (uint32_t i = 0; i < 16; i++) client.request(Command::READ, i, i * kLarge, kLarge);
  pollfd begun = {client.fd(), POLLIN, 0};
  REQUIRE(poll(&begun, 1, Client::kTimeLimitMs) == 1);
  while (rig.stats(rig.last_id).read_bytes < 16 * kLarge) REQUIRE(rig.stats(rig.last_id).id != 0);
  REQUIRE(ftruncate(rig.origin_file->fd(), 4096) == 0);
  std::vector<uint8_t> data(16 * (kLarge + sizeof(SimpleReply)));
  CHECK_FALSE(client.receive(data.data(), data.size()));
  CHECK(rig.wait_closed(rig.last_id) ==
        "a read failed when its answer had begun: No data available");
}

TEST_CASE("large reads through a snapshot, over staged writes, of errors") {
  constexpr uint32_t kLarge = 1 << 20;
  Rig rig(Rig::kMemoryBytesMax + 4096);
  Client client = rig.connect();
  CHECK(client.write(0, kLarge, 1) == 0);
  ConnectionOptions options;
  options.view = rig.snapshot("s");
  Client reader = rig.connect(std::move(options));
  rig.store_gate.close_gate();
  CHECK(client.write(32768, 4096, 2) == 0);
  std::vector<uint8_t> expected(kLarge, 1);
  CHECK(reader.ask(Command::READ, 0, kLarge).data == expected);
  std::fill_n(expected.begin() + 32768, 4096, uint8_t{2});
  CHECK(client.ask(Command::READ, 0, kLarge).data == expected);
  rig.store_gate.open_gate();
  Fault fault;
  fault.op = DeviceOp::READ;
  rig.origin_faults.add_fault(fault);
  CHECK(client.ask(Command::READ, 2 * kLarge, kLarge).error != 0);
}

TEST_CASE("47: a client that resets in the middle of an answer harms nobody") {
  Rig rig;
  Client other = rig.connect();
  for (int round = 0; round < 50; round++) {
    Client client = rig.connect(rig.options(), AF_INET);
    const uint64_t id = rig.last_id;
    client.request(Command::WRITE, 1, 0, 4096, 0, Bytes(4096, static_cast<uint8_t>(round)));
    for (uint64_t i = 0; i < 8; i++) client.request(Command::READ, i, 0, kMiB);
    uint8_t some[1000];
    CHECK(client.receive(some, sizeof some));
    const linger reset = {1, 0};
    setsockopt(client.fd(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    client.close();
    CHECK(rig.wait_closed(id).find("gone") != std::string::npos);
    CHECK(other.ask(Command::READ, 0, 4096).data == Bytes(4096, static_cast<uint8_t>(round)));
  }
  CHECK(rig.set->list().size() == 1);
}

TEST_CASE("50: 64 requests in any order of completion, each answered as itself") {
  const uint64_t seed = seed_from_environment(4);
  CAPTURE(seed);
  Rng rng(seed);
  Rig rig;
  Client client = rig.connect();
  for (uint64_t block = 0; block < 64; block++)
    CHECK(client.write(block * 65536, 512, static_cast<uint8_t>(block + 1)) == 0);
  rig.snapshot("s");
  rig.store_gate.close_gate();
  std::map<uint64_t, uint32_t> reads;
  size_t parked = 0;
  for (uint64_t i = 0; i < 64; i++) {
    const uint64_t offset = i * 65536;
    if (rng.coin()) {
      client.request(Command::READ, i, offset, 512);
      reads[i] = 512;
    } else {
      // First write to a shared chunk: waits for the gate.
      client.request(Command::WRITE, i, offset, Rig::kChunkBytes, 0, Bytes(Rig::kChunkBytes, 0xaa));
      parked++;
    }
  }
  // No read stands behind a parked write.
  Answer answer;
  std::map<uint64_t, bool> seen;
  for (size_t i = 0; i < reads.size(); i++) {
    const uint64_t cookie = client.simple(answer, reads);
    REQUIRE(reads.count(cookie) == 1);
    CHECK(answer.data == Bytes(512, static_cast<uint8_t>(cookie + 1)));
    seen[cookie] = true;
  }
  rig.store_gate.open_gate();
  for (size_t i = 0; i < parked; i++) {
    const uint64_t cookie = client.simple(answer);
    CHECK(reads.count(cookie) == 0);
    CHECK(answer.error == 0);
    CHECK(!seen[cookie]);
    seen[cookie] = true;
  }
  CHECK(seen.size() == 64);
}

TEST_CASE("51: overlapping writes of several clients never tear a block") {
  Rig rig;
  rig.snapshot("s");
  std::vector<Client> clients;
  for (int i = 0; i < 4; i++) clients.push_back(rig.connect());
  std::vector<std::unique_ptr<Thread>> threads;
  for (size_t i = 0; i < clients.size(); i++) {
    threads.push_back(std::make_unique<Thread>());
    threads.back()->start("client", [&client = clients[i], i] {
      for (int round = 0; round < 100; round++)
        CHECK(client.write(0, 65536, static_cast<uint8_t>(i + 1)) == 0);
    });
  }
  for (auto& thread : threads) thread->join();
  const Bytes content = clients[0].ask(Command::READ, 0, 65536).data;
  for (size_t block = 0; block < content.size(); block += 512) {
    CHECK(content[block] >= 1);
    CHECK(content[block] <= 4);
    for (size_t i = 1; i < 512; i++)
      if (content[block + i] != content[block]) FAIL("a torn block");
  }
}

TEST_CASE("several clients with regions of their own read back what they wrote, by seed") {
  const uint64_t seed = seed_from_environment(5);
  CAPTURE(seed);
  // In a file, so that what the page cache holds is sent from there.
  Rig rig(Rig::kMemoryBytesMax + 4096);
  constexpr size_t kClients = 4;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Client> clients;
  for (size_t i = 0; i < kClients; i++) clients.push_back(rig.connect());
  std::atomic<size_t> mismatches{0};
  std::atomic<size_t> left{kClients};
  for (size_t i = 0; i < kClients; i++) {
    threads.push_back(std::make_unique<Thread>());
    threads.back()->start("client", [&, i] {
      Rng rng(seed + i);
      Client& client = clients[i];
      const uint64_t start = i * kMiB;
      Bytes model(kMiB, 0);
      for (int round = 0; round < 60; round++) {
        // A burst of requests in flight, answers in any order; writes don't overlap within one.
        std::map<uint64_t, uint32_t> reads;
        std::map<uint64_t, Bytes> wanted;
        const uint64_t count = 1 + rng.below(24);
        for (uint64_t n = 0; n < count; n++) {
          const uint64_t slice = n * (kMiB / 24);
          const uint64_t offset = slice + rng.below(20000);
          const auto length = static_cast<uint32_t>(1 + rng.below(kMiB / 24 - 20000));
          const auto value = static_cast<uint8_t>(rng.next());
          const uint64_t kind = rng.below(4);
          if (kind == 0) {
            client.request(Command::READ, n, start + offset, length);
            reads[n] = length;
            wanted[n].assign(&model[offset], &model[offset] + length);
          } else if (kind == 1) {
            client.request(Command::WRITE_ZEROES, n, start + offset, length);
            std::memset(&model[offset], 0, length);
          } else {
            client.request(Command::WRITE, n, start + offset, length, rng.coin() ? kFlagFua : 0,
                           Bytes(length, value));
            std::memset(&model[offset], value, length);
          }
        }
        for (uint64_t n = 0; n < count; n++) {
          Answer answer;
          const uint64_t cookie = client.simple(answer, reads);
          if (answer.error != 0) mismatches++;
          if (reads.count(cookie) != 0 && answer.data != wanted[cookie]) mismatches++;
        }
        if (client.ask(Command::READ, start, kMiB).data != model) mismatches++;
      }
      left--;
    });
  }
  int made = 0;
  while (left > 0 && made < 40) rig.snapshot("s" + std::to_string(made++));
  for (auto& thread : threads) thread->join();
  CHECK(mismatches == 0);
}

// ---- The end -----------------------------------------------------------------------------------

TEST_CASE("a volume that fails drops its connections and answers no error (W9)") {
  Rig rig;
  Client client = rig.connect();
  const uint64_t id = rig.last_id;
  CHECK(client.write(0, 4096, 1) == 0);
  Fault fault;
  fault.op = DeviceOp::SYNC;
  fault.times = Fault::kForever;
  rig.origin_faults.add_fault(fault);
  client.request(Command::FLUSH, 1, 0, 0);
  CHECK(client.at_end());
  rig.wait_closed(id);
  Client late = rig.connect();
  late.request(Command::READ, 1, 0, 512);
  CHECK(late.at_end());
  CHECK(rig.volume->info().failed);
}

TEST_CASE("an I/O error is answered as one, told with its cause, and the connection goes on") {
  Rig rig;
  Client client = rig.connect();
  Fault fault;
  fault.op = DeviceOp::READ;
  fault.end_offset = 4096;
  rig.origin_faults.add_fault(fault);
  CHECK(client.ask(Command::READ, 0, 512).error == 5);
  CHECK(client.ask(Command::READ, 0, 512).error == 0);
  MutexLock lock(rig.mutex);
  REQUIRE(rig.problems.size() == 1);
  CHECK(rig.problems[0].find("read of 512 bytes at 0 failed: IO_ERROR") == 0);
}

TEST_CASE("reads of a deleted snapshot fail, never with other content") {
  Rig rig;
  Client writer = rig.connect();
  CHECK(writer.write(0, 4096, 1) == 0);
  ConnectionOptions options = rig.options();
  options.view = rig.snapshot("s");
  const Uuid uuid = options.view->uuid;
  Client client = rig.connect(std::move(options));
  CHECK(client.ask(Command::READ, 0, 4096).data == Bytes(4096, 1));
  CHECK(rig.volume->delete_snapshot(uuid).ok());
  CHECK(client.ask(Command::READ, 0, 4096).error == 5);
}

TEST_CASE("55: a drain answers what is under way, drops what is not, and ends") {
  for (const int domain : {AF_UNIX, AF_INET}) {
    Rig rig;
    Client client = rig.connect(rig.options(), domain);
    const uint64_t id = rig.last_id;
    rig.snapshot("s");
    rig.store_gate.close_gate();
    client.request(Command::WRITE, 1, 0, Rig::kChunkBytes, 0, Bytes(Rig::kChunkBytes, 1));
    rig.store_gate.wait_for_sync();
    rig.set->drain(id);
    // Not read by the server any more; on TCP these bytes must not cost the answer. A unix socket
    // may refuse them.
    const Request late = Client::header(Command::READ, 2, 0, 512);
    (void)!send(client.fd(), &late, sizeof late, MSG_NOSIGNAL);
    rig.store_gate.open_gate();
    Answer answer;
    CHECK(client.simple(answer) == 1);
    CHECK(answer.error == 0);
    CHECK(client.at_end());
    client.close();
    CHECK(rig.wait_closed(id) == "drained");
  }
}

TEST_CASE("a cut ends the socket at once, while issued writes still finish") {
  Rig rig;
  Client client = rig.connect();
  const uint64_t id = rig.last_id;
  rig.snapshot("s");
  rig.store_gate.close_gate();
  client.request(Command::WRITE, 1, 0, Rig::kChunkBytes, 0, Bytes(Rig::kChunkBytes, 1));
  rig.store_gate.wait_for_sync();
  rig.set->cut(id, "for the test");
  CHECK(client.at_end());
  CHECK(rig.stats(id).in_flight == 1);
  rig.store_gate.open_gate();
  CHECK(rig.wait_closed(id) == "for the test");
  Client other = rig.connect();
  CHECK(other.ask(Command::READ, 0, 4096).data == Bytes(4096, 1));
}

TEST_CASE("stopping: idle, busy, stuck and half-received clients all end; new ones are refused") {
  Rig rig;
  rig.snapshot("s");
  Client idle = rig.connect();
  Client busy = rig.connect();
  Client half = rig.connect();
  Client stuck = rig.connect();
  const uint64_t stuck_id = rig.last_id;
  for (uint64_t i = 0; i < 16; i++) stuck.request(Command::READ, i, 0, kMiB);
  while (rig.stats(stuck_id).in_flight == 0) {
  }
  half.request(Command::WRITE, 1, 0, 100000, 0, Bytes(50000, 3));
  busy.request(Command::WRITE, 1, 2 << 20, 4096, 0, Bytes(4096, 1));
  Answer answer;
  CHECK(busy.simple(answer) == 1);
  Thread stopper;
  stopper.start("stopper", [&] { rig.set->drain_all(200); });
  CHECK(idle.at_end());
  CHECK(busy.at_end());
  CHECK(half.at_end());
  stopper.join();
  CHECK(rig.closed.size() == 4);
  CHECK(rig.closed[stuck_id] == "drained");
  ConnectionOptions options = rig.options();
  int fds[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
  options.socket = UniqueFd(fds[0]);
  const UniqueFd far(fds[1]);
  const Result<uint64_t> refused = rig.set->serve(std::move(options));
  CHECK(refused.status().code() == Code::SHUTTING_DOWN);
  CHECK(rig.set->list().empty());
}

TEST_CASE("connections come and go by the hundred") {
  Rig rig;
  for (int round = 0; round < 300; round++) {
    Client client = rig.connect();
    CHECK(client.ask(Command::READ, 0, 512).error == 0);
    if (round % 3 == 0) client.request(Command::DISC, 1, 0, 0);
  }
  for (uint64_t id = 1; id <= 300; id++) rig.wait_closed(id);
  CHECK(rig.set->list().empty());
  CHECK(rig.closed.size() == 300);
}

}  // namespace
}  // namespace csnap::nbd
