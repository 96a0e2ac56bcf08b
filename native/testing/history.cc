#include "testing/history.h"

#include <algorithm>
#include <cstring>

#include "testing/rng.h"

namespace csnap {
namespace {

constexpr size_t kWords = kSectorBytes / 8;

uint64_t word_of(uint64_t head, size_t i) { return (head + i) * 0x9e3779b97f4a7c15; }

}  // namespace

void fill_sector(Token token, uint64_t sector, uint8_t* bytes) {
  if (token == 0) {
    std::memset(bytes, 0, kSectorBytes);
    return;
  }
  const uint64_t head = uint64_t{token} << 32 | sector;
  uint64_t words[kWords];
  words[0] = head;
  for (size_t i = 1; i < kWords; i++) words[i] = word_of(head, i);
  std::memcpy(bytes, words, sizeof words);
}

Token token_of_sector(const uint8_t* bytes, uint64_t sector) {
  uint64_t words[kWords];
  std::memcpy(words, bytes, sizeof words);
  if (words[0] == 0)
    return std::all_of(words, words + kWords, [](uint64_t word) { return word == 0; }) ? 0 : kTorn;
  if ((words[0] & 0xffffffff) != sector) return kTorn;
  for (size_t i = 1; i < kWords; i++)
    if (words[i] != word_of(words[0], i)) return kTorn;
  return static_cast<Token>(words[0] >> 32);
}

Tokens tokens_of(const std::vector<uint8_t>& bytes, uint64_t first_sector) {
  Tokens tokens(bytes.size() / kSectorBytes);
  for (size_t i = 0; i < tokens.size(); i++)
    tokens[i] = token_of_sector(bytes.data() + i * kSectorBytes, first_sector + i);
  return tokens;
}

// ---- Writing down ------------------------------------------------------------------------------

void History::promised(const char* what) {
  promise_count_++;
  if (stopped_) acknowledged_after_stop_ = what;
}

Token History::submitted(IoOp kind, uint64_t first_sector, uint64_t sector_count) {
  ops_.push_back({kind, first_sector, sector_count, tick()});
  const auto op = static_cast<uint32_t>(ops_.size() - 1);
  // Tokens below are those of the initial content.
  const Token token = op + 1'000'000;
  for (uint64_t i = 0; i < sector_count; i++)
    by_sector_[first_sector + i].push_back({op, kind == IoOp::WRITE ? token : 0});
  return token;
}

void History::acknowledged(Token token, bool durable) {
  Op& op = ops_[token - 1'000'000];
  op.over = tick();
  op.acknowledged = true;
  op.durable = durable;
  promised(op.durable ? "a write with FUA" : "a write");
}

void History::refused(Token token) { ops_[token - 1'000'000].over = tick(); }

void History::flush_acknowledged(Tick submitted) {
  tick();
  promised("a flush");
  flushed_before_ = std::max(flushed_before_, submitted);
}

size_t History::create_called(const std::string& name) {
  SnapshotNote note;
  note.name = name;
  note.called = tick();
  snapshots_.push_back(std::move(note));
  return snapshots_.size() - 1;
}

void History::create_returned(size_t index, const Uuid& uuid) {
  snapshots_[index].uuid = uuid;
  snapshots_[index].returned = tick();
  promise_count_++;  // made durable a while ago: no telling what happened since
}

void History::delete_returned(size_t index) {
  snapshots_[index].delete_returned = tick();
  promise_count_++;
}

void History::was_dropped(const std::string& name) {
  for (SnapshotNote& note : snapshots_)
    if (note.name == name) note.dropped = true;
  promise_count_++;
}

void History::content_read(size_t index, Tokens content) {
  snapshots_[index].content = std::make_shared<const Tokens>(std::move(content));
  promise_count_++;
}

void History::hold_returned() {
  hold_ = *hold_wanted_;
  hold_wanted_.reset();
  promised("a hold");
}

void History::recovered(const Tokens& origin_now, const Uuid& hold_now, Loss loss) {
  hold_ = hold_now;
  hold_wanted_.reset();
  const Tick then = tick();
  for (Op& op : ops_) op.over = std::min(op.over, then);
  Op found{IoOp::WRITE, 0, sector_count(), tick()};
  found.over = tick();
  found.acknowledged = true;
  found.durable = loss == Loss::POWER;
  found.observed = true;
  ops_.push_back(found);
  for (uint64_t sector = 0; sector < sector_count(); sector++)
    by_sector_[sector].push_back({static_cast<uint32_t>(ops_.size() - 1), origin_now[sector]});
  promise_count_++;
}

// ---- Judging -----------------------------------------------------------------------------------

bool History::kept(const Op& op, Loss loss) const {
  if (!op.acknowledged || op.kind == IoOp::TRIM) return false;
  return loss == Loss::NONE || op.durable || op.over < flushed_before_;
}

template <typename Counts>
Tick History::barrier(uint64_t sector, Counts counts) const {
  Tick latest = 0;
  for (const Version& version : by_sector_[sector]) {
    const Op& op = ops_[version.op];
    if (op.submitted > latest && counts(op)) latest = op.submitted;
  }
  return latest;
}

bool History::possible(uint64_t sector, Token token, Tick barrier, Tick until) const {
  if (barrier == 0 && initial_[sector] == token) return true;
  const auto& versions = by_sector_[sector];
  for (auto at = versions.rbegin(); at != versions.rend(); ++at) {
    const Op& op = ops_[at->op];
    if (at->token == token && op.over >= barrier && op.submitted < until) return true;
  }
  return false;
}

std::string History::describe(uint64_t sector, Token token) const {
  std::string text = "sector " + std::to_string(sector) + " holds ";
  text += token == kTorn ? "torn content" : "token " + std::to_string(token);
  text += "; written there:";
  if (initial_[sector] != 0) text += " initial token " + std::to_string(initial_[sector]);
  for (const Version& version : by_sector_[sector]) {
    const Op& op = ops_[version.op];
    text += " [" +
            std::string(op.observed             ? "found "
                        : op.kind == IoOp::TRIM ? "trim "
                                                : "") +
            std::to_string(version.token) + " at " + std::to_string(op.submitted) + "-" +
            (op.over == kUnderWay ? "" : std::to_string(op.over)) +
            (op.durable        ? " durable"
             : op.acknowledged ? ""
                               : " no reply") +
            "]";
  }
  return text + "; flushed before " + std::to_string(flushed_before_);
}

std::string History::judge_origin(const Tokens& now, Loss loss) const {
  for (uint64_t sector = 0; sector < sector_count(); sector++) {
    const Tick latest = barrier(sector, [&](const Op& op) { return kept(op, loss); });
    if (!possible(sector, now[sector], latest, kUnderWay))
      return std::string(loss == Loss::POWER ? "flushed data is lost (W3): "
                                             : "acknowledged data is lost (W8): ") +
             describe(sector, now[sector]);
  }
  return "";
}

std::string History::judge_read(uint64_t first_sector, const Tokens& seen, Tick submitted) const {
  for (uint64_t i = 0; i < seen.size(); i++) {
    const uint64_t sector = first_sector + i;
    const Tick latest = barrier(sector, [&](const Op& op) {
      return op.acknowledged && op.kind != IoOp::TRIM && op.over < submitted;
    });
    if (!possible(sector, seen[i], latest, kUnderWay))
      return "a read submitted at " + std::to_string(submitted) +
             " returned old or foreign data: " + describe(sector, seen[i]);
  }
  return "";
}

std::string History::judge_hold(const Uuid& found) const {
  if (found == hold_ || (hold_wanted_ && found == *hold_wanted_)) return "";
  return "the hold is of " + found.to_text() + ", it was acknowledged for " + hold_.to_text() +
         (hold_wanted_ ? ", and one for " + hold_wanted_->to_text() + " was under way" : "");
}

std::string History::judge_snapshot(const SnapshotNote& note, const Tokens& content) const {
  if (note.content) {
    for (uint64_t sector = 0; sector < sector_count(); sector++)
      if (content[sector] != (*note.content)[sector])
        return "snapshot " + note.name + " has changed (W6): it held token " +
               std::to_string((*note.content)[sector]) + ", " + describe(sector, content[sector]);
    return "";
  }
  const Tick until = note.returned != 0 ? note.returned : kUnderWay;
  // Everything acknowledged before the youngest operation that is in was submitted must be in too.
  Tick depends = note.called;
  for (uint64_t sector = 0; sector < sector_count(); sector++) {
    const Token token = content[sector];
    if (token < 1'000'000 || token == kTorn || token - 1'000'000 >= ops_.size()) continue;
    depends = std::max(depends, ops_[token - 1'000'000].submitted);
  }
  for (uint64_t sector = 0; sector < sector_count(); sector++) {
    const Tick latest = barrier(sector, [&](const Op& op) {
      return op.acknowledged && op.kind != IoOp::TRIM && op.over < depends;
    });
    if (!possible(sector, content[sector], latest, until))
      return "snapshot " + note.name + " (created at " + std::to_string(note.called) + "-" +
             (note.returned ? std::to_string(note.returned) : "") + ", all before " +
             std::to_string(depends) +
             " belongs to it) breaks W7: " + describe(sector, content[sector]);
  }
  return "";
}

}  // namespace csnap
