// Writes of the same blocks at the same time through a direct device: what WriteClaims is for.
#include "io/write_claims.h"

#include <doctest/doctest.h>

#include <atomic>

#include "base/units.h"
#include "io/direct_test_rig.h"
#include "testing/rng.h"

namespace csnap {
namespace {

// The area is cut at any byte; each piece has an owner, who changes nothing else. Edge blocks are
// shared by neighbours, some by more than two.
void check_neighbours(const std::string& path, uint64_t seed) {
  constexpr size_t kThreads = 6, kArea = 96 * 1024, kRounds = 12;
  struct Piece {
    size_t offset, length;
    uint8_t content;
  };
  Rng rng(seed);
  const auto device = must_open_direct(path);
  std::vector<Piece> pieces;
  for (size_t offset = 0; offset < kArea;) {
    size_t length = rng.one_in(3) ? 1 + rng.below(9000) : 1 + rng.below(900);
    if (rng.one_in(4)) length = round_up(offset + length, 4096) - offset;
    length = std::min(length, kArea - offset);
    pieces.push_back({offset, length, 0});
    offset += length;
  }
  std::atomic<uint64_t> failures{0};
  std::vector<std::unique_ptr<Thread>> threads;
  for (size_t number = 0; number < kThreads; number++) {
    threads.push_back(std::make_unique<Thread>());
    threads.back()->start("writer", [&, number, own = rng.fork()]() mutable {
      for (size_t round = 0; round < kRounds; round++) {
        for (size_t i = number; i < pieces.size(); i += kThreads) {
          Piece& piece = pieces[i];
          const bool zero = own.one_in(5);
          const auto content = static_cast<uint8_t>(zero ? 0 : 1 + own.below(255));
          const Bytes data(piece.length, content);
          Status status(Code::NOT_SUPPORTED, "");
          if (zero) status = device->zero(piece.offset, piece.length, ZeroMode::ALLOW_HOLE);
          if (status.code() == Code::NOT_SUPPORTED)
            status = device->write(piece.offset, data.data(), piece.length);
          if (!status.ok()) failures++;
          piece.content = content;
        }
      }
    });
  }
  for (auto& thread : threads) thread->join();
  CHECK(failures == 0);
  CHECK(device->sync().ok());
  const Bytes medium = read_medium(path);
  size_t lost = 0;
  for (const Piece& piece : pieces)
    for (size_t i = 0; i < piece.length; i++) lost += medium[piece.offset + i] != piece.content;
  CHECK(lost == 0);
}

TEST_CASE("direct I/O: neighbours that write parts of one block lose nothing (WC1)") {
  const uint64_t seed = seed_from_environment(0xd11);
  MESSAGE("CSNAP_SEED=" << seed);
  on_every_kind([&](const std::string& path) {
    CAPTURE(path);
    check_neighbours(path, seed);
  });
}

TEST_CASE("direct I/O: a write of part of a block never undoes one of the whole (WC1)") {
  on_every_kind([](const std::string& path) {
    CAPTURE(path);
    const auto device = must_open_direct(path);
    for (int round = 1; round <= 60; round++) {
      const Bytes whole(8192, static_cast<uint8_t>(round));
      const Bytes part(10, 0xff);
      Thread writer;
      writer.start("whole", [&] { CHECK(device->write(4096, whole.data(), whole.size()).ok()); });
      const Status status = device->write(8186, part.data(), part.size());
      writer.join();
      CHECK(status.ok());
      Bytes now(8192);
      CHECK(device->read(4096, now.data(), now.size()).ok());
      size_t undone = 0;
      for (size_t i = 0; i < now.size(); i++)
        undone += now[i] != round && !(now[i] == 0xff && i >= 4090 && i < 4100);
      REQUIRE(undone == 0);
    }
  });
}

TEST_CASE("direct I/O: more callers than buffers all get their turn (DIO4)") {
  on_every_kind([](const std::string& path) {
    const auto device = must_open_direct(path);
    std::atomic<uint64_t> wrong{0};
    std::vector<std::unique_ptr<Thread>> threads;
    for (size_t number = 0; number < 2 * DirectIo::kBufferCountMax; number++) {
      threads.push_back(std::make_unique<Thread>());
      threads.back()->start("caller", [&, number] {
        const size_t offset = number * 60001 + 1;
        Bytes data(60001, static_cast<uint8_t>(number + 1));
        for (int round = 0; round < 4; round++) {
          if (!device->write(offset, data.data(), data.size()).ok()) wrong++;
          Bytes now(data.size());
          if (!device->read(offset, now.data(), now.size()).ok() || now != data) wrong++;
        }
      });
    }
    for (auto& thread : threads) thread->join();
    CHECK(wrong == 0);
  });
}

}  // namespace
}  // namespace csnap
