#include "testing/workload.h"

#include <algorithm>

#include "base/sync.h"

namespace csnap {

Workload::Workload(Volume& volume, History& history, const WorkloadOptions& options, uint64_t seed,
                   std::function<void(const std::string&)> wrong)
    : volume_(volume),
      history_(history),
      options_(options),
      rng_(seed),
      wrong_(std::move(wrong)),
      origin_(volume.open_origin()),
      ops_left_(options.ops) {
  hot_count_ = std::min(history.sector_count(), 4 * options.chunk_sectors);
  hot_first_ = rng_.below(history.sector_count() - hot_count_ + 1);
}

void Workload::run() {
  std::vector<std::unique_ptr<Thread>> clients;
  for (uint32_t i = 0; i < options_.clients; i++) {
    clients.push_back(std::make_unique<Thread>());
    clients.back()->start("client", [this, seed = rng_.next()] { client(seed); });
  }
  for (auto& client : clients) client->join();
}

void Workload::client(uint64_t seed) {
  Rng rng(seed);
  while (ops_left_ > 0) {
    ops_left_--;
    step(rng);
    if (rng.one_in(4)) yield_point();
  }
}

void Workload::step(Rng& rng) {
  const uint64_t draw = rng.below(100);
  if (draw < 52)
    write(rng, IoOp::WRITE);
  else if (draw < 58)
    write(rng, IoOp::WRITE_ZEROES);
  else if (draw < 64)
    write(rng, IoOp::TRIM);
  else if (draw < 71)
    flush();
  else if (draw < 73)
    hold(rng);
  else if (draw < 78)
    read_origin(rng);
  else if (draw < 84)
    read_some_snapshot(rng);
  else if (draw < 91)
    create(rng);
  else if (draw < 96)
    remove(rng);
  else if (draw < 99) {
    if (Status status = volume_.checkpoint(); !status.ok()) judge_error(status, "checkpoint");
  } else
    change(rng);
}

void Workload::judge_error(const Status& status, const std::string& what) {
  if (options_.may_fail) return;
  if (options_.may_refuse && status.code() == Code::NO_SPACE) return;
  wrong_(what + ": " + status.to_text());
}

namespace {

struct Waiter {
  Mutex mutex;
  CondVar done;
  bool finished = false;
  const std::function<void(const Status&)>* replied = nullptr;

  // `replied` runs at the moment of the reply, before anybody else can act on it.
  void expect(IoRequest& request) {
    request.owner = this;
    request.done = [](IoRequest& finished) {
      auto* owner = static_cast<Waiter*>(finished.owner);
      (*owner->replied)(finished.status);
      MutexLock lock(owner->mutex);
      owner->finished = true;
      owner->done.notify_one();
    };
  }
  void wait() {
    MutexLock lock(mutex);
    while (!finished) done.wait(lock);
  }
};

}  // namespace

Status Workload::perform(Rng& rng, IoRequest& request,
                         const std::function<void(const Status&)>& replied) {
  Waiter waiter;
  waiter.replied = &replied;
  waiter.expect(request);
  if (volume_.submit(request, rng.coin()))
    replied(request.status);
  else
    waiter.wait();
  return request.status;
}

// Small writes as a connection submits what one receive brought, near each other.
void Workload::write_together(Rng& rng) {
  struct One {
    IoRequest request;
    std::vector<uint8_t> data;
    std::function<void(const Status&)> replied;
    Waiter waiter;
  };
  const uint64_t chunk = options_.chunk_sectors;
  const uint64_t start = std::min(hot_first_ + rng.below(hot_count_), history_.sector_count() - 1);
  std::vector<One> all(2 + rng.below(3));
  std::vector<IoRequest*> requests;
  for (One& one : all) {
    const uint64_t first = std::min(start + rng.below(2 * chunk), history_.sector_count() - 1);
    const uint64_t count =
        std::min(1 + rng.below(chunk), std::min(chunk - 1, history_.sector_count() - first));
    const Token token = history_.submitted(IoOp::WRITE, first, count);
    one.data.resize(count * kSectorBytes);
    for (uint64_t i = 0; i < count; i++)
      fill_sector(token, first + i, one.data.data() + i * kSectorBytes);
    one.request.op = IoOp::WRITE;
    one.request.fua = rng.one_in(8);
    one.request.view = origin_.get();
    one.request.offset = first * kSectorBytes;
    one.request.length = one.data.size();
    one.request.data = one.data.data();
    one.replied = [this, token, safe = one.request.fua || options_.sync_mode](const Status& reply) {
      if (reply.ok())
        history_.acknowledged(token, safe);
      else
        history_.refused(token);
    };
    one.waiter.replied = &one.replied;
    one.waiter.expect(one.request);
    requests.push_back(&one.request);
  }
  const uint64_t done = volume_.submit_writes(requests);
  for (size_t i = 0; i < all.size(); i++)
    if (done >> i & 1) all[i].replied(all[i].request.status);
  for (size_t i = 0; i < all.size(); i++) {
    if ((done >> i & 1) == 0) all[i].waiter.wait();
    if (const Status& status = all[i].request.status; !status.ok()) judge_error(status, "write");
  }
}

void Workload::write(Rng& rng, IoOp op) {
  if (op == IoOp::WRITE && rng.one_in(4)) return write_together(rng);
  const uint64_t size = history_.sector_count();
  // Inside a chunk, whole chunks, or several from anywhere.
  uint64_t count = 1 + rng.below(options_.chunk_sectors);
  if (rng.one_in(3)) count = options_.chunk_sectors * (1 + rng.below(3));
  count = std::min(count, size);
  uint64_t first = rng.coin() ? hot_first_ + rng.below(hot_count_) : rng.below(size);
  if (rng.one_in(3)) first = round_down(first, options_.chunk_sectors);
  first = std::min(first, size - count);

  const bool fua = rng.one_in(8);
  const Token token = history_.submitted(op, first, count);
  std::vector<uint8_t> data;
  if (op == IoOp::WRITE) {
    data.resize(count * kSectorBytes);
    for (uint64_t i = 0; i < count; i++)
      fill_sector(token, first + i, data.data() + i * kSectorBytes);
  }
  IoRequest request;
  request.op = op;
  request.fua = fua;
  request.no_hole = rng.coin();
  request.view = origin_.get();
  request.offset = first * kSectorBytes;
  request.length = count * kSectorBytes;
  request.data = data.data();
  const Status status = perform(rng, request, [&](const Status& reply) {
    if (reply.ok())
      history_.acknowledged(token, fua || options_.sync_mode);
    else
      history_.refused(token);
  });
  if (!status.ok()) judge_error(status, "write");
}

void Workload::flush() {
  IoRequest request;
  request.op = IoOp::FLUSH;
  request.view = origin_.get();
  const Tick submitted = history_.flush_submitted();
  Rng unused(1);
  const Status status = perform(unused, request, [&](const Status& reply) {
    if (reply.ok()) history_.flush_acknowledged(submitted);
  });
  if (!status.ok()) judge_error(status, "flush");
}

Status Workload::read(Volume& volume, View& view, uint64_t first_sector, uint64_t count,
                      Tokens& out) {
  std::vector<uint8_t> data(count * kSectorBytes, 0xee);
  IoRequest request;
  request.op = IoOp::READ;
  request.view = &view;
  request.offset = first_sector * kSectorBytes;
  request.length = data.size();
  request.data = data.data();
  CSNAP_TRY(volume.run(request));
  out = tokens_of(data, first_sector);
  return Status();
}

std::shared_ptr<Tokens> Workload::read_snapshot(Volume& volume, const Uuid& uuid, uint64_t sectors,
                                                Status& status) {
  Result<std::shared_ptr<View>> view = volume.open_snapshot(uuid);
  status = view.status();
  if (!status.ok()) return nullptr;
  auto tokens = std::make_shared<Tokens>();
  status = read(volume, *view.value(), 0, sectors, *tokens);
  return status.ok() ? tokens : nullptr;
}

void Workload::read_origin(Rng& rng) {
  const uint64_t first = rng.below(history_.sector_count());
  const uint64_t count = 1 + rng.below(history_.sector_count() - first);
  const Tick submitted = history_.tick();
  Tokens seen;
  if (Status status = read(volume_, *origin_, first, count, seen); !status.ok())
    return judge_error(status, "read");
  const std::string wrong = history_.judge_read(first, seen, submitted);
  if (!wrong.empty()) wrong_(wrong);
}

std::optional<size_t> Workload::any_live(Rng& rng) {
  std::vector<size_t> live;
  for (size_t i = 0; i < history_.snapshots().size(); i++)
    if (history_.snapshots()[i].must_exist()) live.push_back(i);
  if (live.empty()) return std::nullopt;
  return live[rng.below(live.size())];
}

// Whether a snapshot that can't be read was deleted or dropped meanwhile.
bool Workload::gone(size_t index, const Status& status) {
  if (status.code() != Code::SNAPSHOT_DELETED && status.code() != Code::NOT_FOUND) return false;
  // A drop shows itself to readers before its event is told.
  if (history_.snapshots()[index].must_exist()) (void)volume_.wait_reclaimed();
  return !history_.snapshots()[index].must_exist();
}

void Workload::read_some_snapshot(Rng& rng) {
  const std::optional<size_t> index = any_live(rng);
  if (!index) return;
  Status status;
  const Uuid uuid = history_.snapshots()[*index].uuid;  // a copy, as below
  const std::shared_ptr<Tokens> content =
      read_snapshot(volume_, uuid, history_.sector_count(), status);
  const SnapshotNote& note = history_.snapshots()[*index];
  if (!content) {
    if (gone(*index, status)) return;
    return judge_error(status, "read of snapshot " + history_.snapshots()[*index].name);
  }
  const std::string wrong = history_.judge_snapshot(note, *content);
  if (!wrong.empty()) wrong_(wrong);
  if (!note.content) history_.content_read(*index, *content);
}

void Workload::create(Rng& rng) {
  size_t live = 0;
  for (const SnapshotNote& note : history_.snapshots()) live += note.must_exist() ? 1 : 0;
  if (live >= options_.snapshots_max) return remove(rng);
  const std::string name = "s" + std::to_string(history_.snapshots().size());
  const size_t index = history_.create_called(name);
  Result<SnapshotInfo> made =
      volume_.create_snapshot(name, rng.one_in(8), static_cast<uint8_t>(rng.below(3)), {});
  if (!made.ok()) {
    history_.create_failed(index);
    if (made.status().code() != Code::NO_SPACE) judge_error(made.status(), "create");
    return;
  }
  history_.create_returned(index, made.value().uuid);
  if (rng.one_in(4)) return;  // read later, or only after a crash
  Status status;
  const std::shared_ptr<Tokens> content =
      read_snapshot(volume_, made.value().uuid, history_.sector_count(), status);
  const SnapshotNote& note = history_.snapshots()[index];
  if (!content) {
    if (gone(index, status)) return;
    return judge_error(status, "read of new snapshot " + name);
  }
  const std::string wrong = history_.judge_snapshot(note, *content);
  if (!wrong.empty()) wrong_(wrong);
  if (!note.content) history_.content_read(index, *content);
}

void Workload::remove(Rng& rng) {
  const std::optional<size_t> index = any_live(rng);
  if (!index) return;
  const Uuid uuid = history_.snapshots()[*index].uuid;
  history_.delete_called(*index);
  const Status status = volume_.delete_snapshot(uuid);
  if (status.ok()) return history_.delete_returned(*index);
  if (status.code() == Code::NOT_FOUND) return;  // dropped at the same time
  judge_error(status, "delete");
}

void Workload::change(Rng& rng) {
  const std::optional<size_t> index = any_live(rng);
  if (!index) return;
  Volume::SnapshotChanges changes;
  changes.priority = static_cast<int>(rng.below(4));
  const Uuid uuid = history_.snapshots()[*index].uuid;  // a copy: others add to the list meanwhile
  Result<SnapshotInfo> changed = volume_.update_snapshot(uuid, changes);
  if (!changed.ok() && changed.status().code() != Code::NOT_FOUND)
    judge_error(changed.status(), "update");
}

std::string Workload::host_of(const Uuid& attachment) {
  return "host" + std::to_string(attachment.bytes[0]);
}

// Takes the hold, gives it back, or tries what must not succeed.
void Workload::hold(Rng& rng) {
  if (history_.hold_changing()) return;
  const Uuid now = history_.hold();
  Uuid other;
  do {
    other.bytes[0] = static_cast<uint8_t>(rng.between(1, 4));
  } while (other == now);
  if (!now.is_nil() && rng.one_in(3)) {
    history_.hold_called(now);
    const bool take = rng.coin();
    const Result<HoldInfo> done =
        take ? volume_.set_hold(other, host_of(other)) : volume_.clear_hold(other, false);
    if (take ? done.ok() : done.ok() && done.value().held()) wrong_("a foreign hold was changed");
    history_.hold_refused();
    if (!done.ok() && done.status().code() != Code::BUSY) judge_error(done.status(), "hold");
    return;
  }
  const Uuid to = now.is_nil() ? other : Uuid();
  history_.hold_called(to);
  const Result<HoldInfo> done =
      now.is_nil() ? volume_.set_hold(to, host_of(to)) : volume_.clear_hold(now, rng.coin());
  if (done.ok()) {
    if (!(done.value().attachment == (now.is_nil() ? to : now))) wrong_("a change of another hold");
    return history_.hold_returned();
  }
  // Otherwise the volume has failed, and the record may be there or not.
  if (done.status().code() == Code::NO_SPACE) history_.hold_refused();
  judge_error(done.status(), "hold");
}

}  // namespace csnap
