// Many exceptions for a store, as a long-used volume has them. Callers: scale, index_bench, and
// `native_bench load` for a store that csnap itself has made.
#pragma once

#include <functional>

#include "bench/bench.h"

namespace csnap::bench {

// In order: two for each of `exceptions` / 2 chunks, every `stride`-th, in generations from 1 to
// `snapshots`.
void each_exception(uint64_t exceptions, uint64_t snapshots, uint64_t stride,
                    const std::function<void(ChunkIndex, Generation)>& exception);

// The generation of the second one of the `number`-th such chunk: whoever looks up to it finds one.
Generation newest_generation(uint64_t number, uint64_t snapshots);

// Loads those. The store is clean then, and must be closed.
void load(Store& store, uint64_t exceptions, uint64_t snapshots, uint64_t stride = 1);

}  // namespace csnap::bench
