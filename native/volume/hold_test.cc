// The read-write hold of an attachment: who may take and end it, and that it survives closing,
// crashing, checkpoints and looking. Crashes at every device operation are in crash_test.cc.
#include <doctest/doctest.h>

#include <cstring>

#include "store/superblock.h"
#include "testing/faulty_device.h"
#include "volume/volume.h"

namespace csnap {
namespace {

constexpr uint64_t kOriginBytes = 1 << 20;
constexpr uint64_t kStoreBytes = 16 << 20;

Uuid uuid(uint8_t number) {
  Uuid uuid;
  uuid.bytes[15] = number;
  return uuid;
}

struct Rig {
  Rig() : origin("origin", kOriginBytes), store("store", kStoreBytes) {
    CreateOptions create;
    create.volume_name = "vol";
    create.origin.text = "test";
    create.origin_bytes = kOriginBytes;
    create.store_bytes = kStoreBytes;
    const Status status = create_store(store, create);
    REQUIRE_MESSAGE(status.ok(), status.to_text());
    open();
  }

  void open(bool look_only = false) {
    VolumeOptions options;
    options.origin = &origin;
    options.store = &store;
    options.identity.text = "test";
    options.look_only = look_only;
    options.clock_ns = [this] { return ++now; };
    Result<std::unique_ptr<Volume>> opened = Volume::open(std::move(options));
    REQUIRE_MESSAGE(opened.ok(), opened.status().to_text());
    volume = opened.take();
  }
  void close() {
    REQUIRE(volume->close().ok());
    volume.reset();
  }
  HoldInfo take(uint8_t number, const std::string& host) {
    Result<HoldInfo> taken = volume->set_hold(uuid(number), host);
    REQUIRE_MESSAGE(taken.ok(), taken.status().to_text());
    return taken.take();
  }
  // Whether one was ended.
  bool end(const Uuid& attachment, bool force) {
    Result<HoldInfo> ended = volume->clear_hold(attachment, force);
    REQUIRE_MESSAGE(ended.ok(), ended.status().to_text());
    return ended.value().held();
  }
  bool held_by(uint8_t number, const std::string& host) {
    const HoldInfo hold = volume->hold(), info = volume->info().hold;
    return hold.attachment == uuid(number) && hold.host == host &&
           info.attachment == uuid(number) && info.host == host && info.since_ns == hold.since_ns;
  }
  std::string dumped() {
    std::string line_of_hold;
    REQUIRE(volume
                ->dump([&](const std::string& line) {
                  if (line.starts_with("{\"type\":\"hold\"")) line_of_hold += line;
                  return true;
                })
                .ok());
    return line_of_hold;
  }

  MemoryDevice origin, store;
  uint64_t now = 1000;
  std::unique_ptr<Volume> volume;
};

}  // namespace

TEST_CASE("holds: one attachment at a time; a repeated take changes nothing") {
  Rig rig;
  CHECK_FALSE(rig.volume->hold().held());
  const HoldInfo first = rig.take(1, "alpha");
  CHECK(first.since_ns > 1000);
  CHECK(rig.held_by(1, "alpha"));
  // Another take of the same attachment is the same hold, since then.
  CHECK(rig.take(1, "renamed").since_ns == first.since_ns);
  CHECK(rig.held_by(1, "alpha"));
  const Result<HoldInfo> other = rig.volume->set_hold(uuid(2), "beta");
  CHECK(other.status().code() == Code::BUSY);
  CHECK(other.status().message().find("alpha") != std::string::npos);
  CHECK_FALSE(rig.end(uuid(2), false));
  CHECK(rig.held_by(1, "alpha"));
  CHECK(rig.end(uuid(1), false));
  CHECK_FALSE(rig.volume->hold().held());
  CHECK_FALSE(rig.end(uuid(1), false));
  CHECK_FALSE(rig.end(Uuid(), true));
  rig.take(2, "beta");
  CHECK(rig.end(Uuid(), true));
  CHECK_FALSE(rig.volume->hold().held());
  rig.close();
}

TEST_CASE("holds: what makes no hold is refused") {
  Rig rig;
  for (const std::string& host : {std::string(), std::string(64, 'h'), std::string("a\0b", 3)})
    CHECK(rig.volume->set_hold(uuid(1), host).status().code() == Code::INVALID_ARGUMENT);
  CHECK(rig.volume->set_hold(Uuid(), "alpha").status().code() == Code::INVALID_ARGUMENT);
  CHECK_FALSE(rig.volume->hold().held());
  rig.take(1, std::string(63, 'h'));
  CHECK(rig.held_by(1, std::string(63, 'h')));
  rig.close();
}

TEST_CASE("holds: survive a close, a kill and a checkpoint, and so does their end") {
  Rig rig;
  for (const bool checkpoint : {false, true}) {
    for (const bool kill : {false, true}) {
      const auto again = [&] {
        if (checkpoint) REQUIRE(rig.volume->checkpoint().ok());
        if (kill)
          rig.volume.reset();
        else
          rig.close();
        rig.open(true);
        const HoldInfo seen = rig.volume->hold();
        rig.volume.reset();
        rig.open();
        CHECK(seen.attachment == rig.volume->hold().attachment);
      };
      rig.take(3, "gamma");
      again();
      CHECK(rig.held_by(3, "gamma"));
      CHECK(rig.dumped().find(uuid(3).to_text()) != std::string::npos);
      CHECK(rig.dumped().find("\"host\":\"gamma\"") != std::string::npos);
      CHECK(rig.volume->check(true, nullptr).value().clean);
      CHECK(rig.volume->set_hold(uuid(4), "delta").status().code() == Code::BUSY);
      CHECK(rig.end(uuid(3), false));
      again();
      CHECK_FALSE(rig.volume->hold().held());
      CHECK(rig.dumped().empty());
    }
  }
  rig.close();
}

TEST_CASE("holds: who only looks changes none") {
  Rig rig;
  rig.take(1, "alpha");
  rig.close();
  rig.open(true);
  CHECK(rig.held_by(1, "alpha"));
  CHECK(rig.volume->set_hold(uuid(1), "alpha").status().code() == Code::READ_ONLY);
  CHECK(rig.volume->clear_hold(uuid(1), true).status().code() == Code::READ_ONLY);
  CHECK(rig.held_by(1, "alpha"));
}

TEST_CASE("holds: a superblock whose hold makes no sense is a finding") {
  format::Hold hold{};
  CHECK(sane_hold(hold));
  hold.host[0] = 'h';
  CHECK_FALSE(sane_hold(hold));  // nobody's host
  hold.attachment[3] = 1;
  CHECK(sane_hold(hold));
  hold.host[5] = 'x';
  CHECK_FALSE(sane_hold(hold));  // something behind the end
  std::memset(hold.host, 'h', sizeof hold.host);
  CHECK_FALSE(sane_hold(hold));  // no end
  std::memset(hold.host, 0, sizeof hold.host);
  CHECK_FALSE(sane_hold(hold));  // no host
}

}  // namespace csnap
