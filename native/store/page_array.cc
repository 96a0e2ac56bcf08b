#include "store/page_array.h"

#include <algorithm>
#include <cstring>

namespace csnap {
namespace {

constexpr uint64_t kFanOut = format::kDirectoryEntriesMax;

// Pages below one entry of a directory of this level.
uint64_t pages_below_entry(uint8_t level) {
  uint64_t pages = 1;
  for (uint8_t i = 1; i < level; i++) pages *= kFanOut;
  return pages;
}

}  // namespace

uint8_t PageArray::levels() const {
  uint8_t level = 1;
  while (pages_below_entry(level) * kFanOut < pages_.size()) level++;
  return level;
}

uint64_t PageArray::directory_blocks() const {
  uint64_t count = 0;
  uint64_t below = pages_.size();
  do {
    below = div_up(below, kFanOut);
    count += below;
  } while (below > 1);
  return count;
}

uint64_t PageArray::blocks_needed() const {
  return dirty_count_ == 0 ? 0 : dirty_count_ + directory_blocks();
}

Status PageArray::load(const format::TreeRoot& root, uint64_t page_count) {
  pages_.clear();
  pages_.resize(page_count);
  directories_.clear();
  dirty_count_ = 0;
  root_ = root;
  if (root.block == 0) return Status();
  if (root.level != levels())
    return Status(Code::CORRUPT, "page array's root has level " + std::to_string(root.level) +
                                     " instead of " + std::to_string(levels()));
  return load_level({root.block, root.crc}, root.level, 0);
}

Status PageArray::load_level(BlockRef ref, uint8_t level, uint64_t first_page) {
  BlockImage image;
  CSNAP_TRY(io_.read(ref, format::BlockKind::DIRECTORY, level, image));
  directories_.push_back(ref.block);
  const auto* entries = reinterpret_cast<const format::DirectoryEntry*>(image.payload());
  const uint64_t step = pages_below_entry(level);
  if (image.header().count > kFanOut)
    return Status(Code::CORRUPT, "directory block " + std::to_string(ref.block) + " is overfull");
  for (uint64_t i = 0; i < image.header().count; i++) {
    if (entries[i].block == 0) continue;
    const uint64_t first = first_page + i * step;
    if (first >= pages_.size())
      return Status(Code::CORRUPT,
                    "directory block " + std::to_string(ref.block) + " reaches past its array");
    const BlockRef child{entries[i].block, entries[i].crc};
    if (level > 1) {
      CSNAP_TRY(load_level(child, level - 1, first));
      continue;
    }
    BlockImage page;
    CSNAP_TRY(io_.read(child, kind_, 0, page));
    pages_[first].data = std::make_unique<Page>();
    std::memcpy(pages_[first].data->data(), page.payload(), format::kBlockPayloadBytes);
    pages_[first].ref = child;
  }
  return Status();
}

void PageArray::resize(uint64_t page_count) {
  CSNAP_ASSERT(page_count >= pages_.size());
  pages_.resize(page_count);
}

PageArray::Page& PageArray::writable(uint64_t number) {
  CSNAP_ASSERT(number < pages_.size());
  PageState& page = pages_[number];
  if (!page.data) page.data = std::make_unique<Page>();
  if (!page.dirty) {
    page.dirty = true;
    page.assigned = false;
    dirty_count_++;
  }
  return *page.data;
}

bool PageArray::assign() {
  if (dirty_count_ == 0) return false;
  bool changed = false;
  for (uint64_t i = 0; i < pages_.size(); i++) {
    PageState& page = pages_[i];
    if (!page.dirty || page.assigned) continue;
    // Marked before the calls: both may come back to this very page.
    page.assigned = true;
    const BlockNumber former = page.ref.block;
    pages_[i].ref.block = io_.allocate();
    if (former != 0) io_.release(former);
    changed = true;
  }
  while (new_directories_.size() < directory_blocks()) {
    new_directories_.push_back(io_.allocate());
    changed = true;
  }
  for (BlockNumber block : directories_) {
    io_.release(block);
    changed = true;
  }
  directories_.clear();
  return changed;
}

format::TreeRoot PageArray::seal(std::vector<SealedBlock>& out) {
  if (dirty_count_ == 0) return root_;
  std::vector<BlockRef> children;
  children.reserve(pages_.size());
  for (PageState& page : pages_) {
    if (page.dirty) {
      CSNAP_ASSERT(page.assigned);
      auto image = std::make_unique<BlockImage>();
      image->header().kind = static_cast<uint8_t>(kind_);
      image->header().level = 0;
      image->header().count = 0;
      std::memcpy(image->payload(), page.data->data(), format::kBlockPayloadBytes);
      page.ref.crc = io_.seal(page.ref.block, *image);
      out.push_back({page.ref.block, std::move(image)});
      page.dirty = page.assigned = false;
    }
    children.push_back(page.ref);
  }
  dirty_count_ = 0;

  size_t next = 0;
  uint8_t level = 0;
  do {
    level++;
    std::vector<BlockRef> parents;
    for (size_t first = 0; first < children.size(); first += kFanOut) {
      const size_t count = std::min<size_t>(kFanOut, children.size() - first);
      auto image = std::make_unique<BlockImage>();
      image->header().kind = static_cast<uint8_t>(format::BlockKind::DIRECTORY);
      image->header().level = level;
      image->header().count = static_cast<uint16_t>(count);
      auto* entries = reinterpret_cast<format::DirectoryEntry*>(image->payload());
      for (size_t i = 0; i < count; i++) {
        entries[i].block = children[first + i].block;
        entries[i].crc = children[first + i].crc;
      }
      CSNAP_ASSERT(next < new_directories_.size());
      const BlockNumber block = new_directories_[next++];
      const uint32_t crc = io_.seal(block, *image);
      parents.push_back({block, crc});
      out.push_back({block, std::move(image)});
    }
    children = std::move(parents);
  } while (children.size() > 1);
  CSNAP_ASSERT(next == new_directories_.size());
  directories_ = std::move(new_directories_);
  new_directories_.clear();
  root_.block = children[0].block;
  root_.crc = children[0].crc;
  root_.level = level;
  return root_;
}

void PageArray::blocks(std::vector<BlockNumber>& out) const {
  for (const PageState& page : pages_)
    if (page.ref.block != 0) out.push_back(page.ref.block);
  out.insert(out.end(), directories_.begin(), directories_.end());
}

}  // namespace csnap
