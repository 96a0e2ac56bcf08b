// Index::walk: the checker's way through the whole tree. What is on the device is read from there,
// past the cache, into images of its own; only nodes not written yet are taken from RAM.
#include "store/index_impl.h"

namespace csnap {
namespace {

struct Frame {
  std::unique_ptr<BlockImage> image;
  Node* live = nullptr;  // dirty or frozen: stays resident until the next checkpoint step
  BlockNumber block = 0;
  uint32_t slot = 0;
  KeyBounds bounds;
};

class Walker {
 public:
  Walker(IndexImpl& impl, const std::function<bool(const NodeView&)>& node,
         const std::function<bool(const Entry&)>& entry,
         const std::function<bool(const std::string&)>& problem)
      : impl_(impl), on_node_(node), on_entry_(entry), on_problem_(problem) {}

  Status run();

 private:
  // What there is to say about a node the walk comes to.
  enum class Step { ENTER, SKIP, STOP };

  Status fetch(const Frame* parent, BlockRef ref, uint8_t level, Frame& frame, Status& found);
  Step check(const Frame& frame, uint8_t level, const Status& found,
             const GenerationRange* promised);
  bool visit_leaf(const Frame& frame);
  KeyBounds child_bounds(const Frame& parent) const;

  IndexImpl& impl_;
  const std::function<bool(const NodeView&)>& on_node_;
  const std::function<bool(const Entry&)>& on_entry_;
  const std::function<bool(const std::string&)>& on_problem_;
  uint64_t changes_ = 0;
};

// Brings a node's image into `frame`. `found`: what is wrong with it. The result: whether the walk
// can go on at all.
Status Walker::fetch(const Frame* parent, BlockRef ref, uint8_t level, Frame& frame,
                     Status& found) {
  if (!frame.image) frame.image = std::make_unique<BlockImage>();
  frame.block = ref.block;
  frame.slot = 0;
  frame.live = nullptr;
  {
    SharedLock lock(impl_.latch);
    if (impl_.changes != changes_)
      return Status(Code::BUSY, "the exception index changed while it was being checked; retry");
    Node* node = nullptr;
    if (!parent)
      node = impl_.root.load(std::memory_order_acquire);
    else if (parent->live)
      node = parent->live->child(parent->slot);
    if (node && impl_.cache.unwritten(*node)) {
      frame.live = node;
      *frame.image = *node->image;
    }
  }
  if (!frame.live) found = impl_.io.read(ref, node_kind(level), level, *frame.image);
  if (found.ok()) found = validate_node(*frame.image, level, ref.block);
  if (found.ok()) found = validate_bounds(*frame.image, level, ref.block, frame.bounds);
  return Status();
}

Walker::Step Walker::check(const Frame& frame, uint8_t level, const Status& found,
                           const GenerationRange* promised) {
  if (!found.ok()) return on_problem_(found.message()) ? Step::SKIP : Step::STOP;
  const BlockImage& image = *frame.image;
  const NodeView view{frame.block, static_cast<uint8_t>(node_kind(level)), level,
                      node_count(image)};
  if (!on_node_(view)) return Step::STOP;
  std::string problem;
  if (promised && !promised->covers(node_range(image, level)))
    problem = "it holds generations outside the range its parent promises";
  if (!promised && level > 0 && node_count(image) < 2) problem = "it is a root with a single child";
  if (!problem.empty() && !on_problem_(corrupt_node(frame.block, problem).message()))
    return Step::STOP;
  return Step::ENTER;
}

bool Walker::visit_leaf(const Frame& frame) {
  for (uint32_t i = 0; i < node_count(*frame.image); i++)
    if (!on_entry_(Entry::from_disk(leaf_entries(*frame.image)[i]))) return false;
  return true;
}

KeyBounds Walker::child_bounds(const Frame& parent) const {
  const format::IndexChild* children = inner_children(*parent.image);
  KeyBounds bounds = parent.bounds;
  if (parent.slot > 0) bounds.lower = key_of(children[parent.slot]);
  if (parent.slot + 1 < node_count(*parent.image)) {
    bounds.upper = key_of(children[parent.slot + 1]);
    bounds.has_upper = true;
  }
  return bounds;
}

Status Walker::run() {
  BlockRef ref;
  uint8_t top = 0;
  {
    SharedLock lock(impl_.latch);
    changes_ = impl_.changes;
    ref = impl_.root_ref;
    top = impl_.root_level;
  }
  if (ref.block == 0) return Status();
  if (top >= kIndexLevelsMax) {
    on_problem_(
        corrupt_node(ref.block, "the superblock says level " + std::to_string(top)).message());
    return Status();
  }
  std::vector<Frame> frames(top + 1u);  // by level
  Status found;
  CSNAP_TRY(fetch(nullptr, ref, top, frames[top], found));
  if (check(frames[top], top, found, nullptr) != Step::ENTER) return Status();
  for (uint32_t level = top; level <= top;) {
    Frame& frame = frames[level];
    if (level == 0 && !visit_leaf(frame)) return Status();
    if (level == 0 || frame.slot == node_count(*frame.image)) {
      level++;
      if (level <= top) frames[level].slot++;
      continue;
    }
    const format::IndexChild& child = inner_children(*frame.image)[frame.slot];
    const GenerationRange promised = range_of(child);
    const auto below = static_cast<uint8_t>(level - 1);
    frames[below].bounds = child_bounds(frame);
    found = Status();
    CSNAP_TRY(fetch(&frame, {child.block, child.crc}, below, frames[below], found));
    const Step step = check(frames[below], below, found, &promised);
    if (step == Step::STOP) return Status();
    if (step == Step::ENTER)
      level--;
    else
      frame.slot++;
  }
  return Status();
}

}  // namespace

Status Index::walk(const std::function<bool(const NodeView&)>& node,
                   const std::function<bool(const Entry&)>& entry,
                   const std::function<bool(const std::string&)>& problem) {
  return Walker(*impl_, node, entry, problem).run();
}

}  // namespace csnap
