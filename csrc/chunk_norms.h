// The norms of many tensors, chunk by chunk, and what they are together; whoever includes this measures a chunk.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "chunk_sums.h"
#include "cpu/norm_lanes.h"
#include "cpu/shared_chunks.h"
#include "norms.h"
#include "owner.h"

namespace fastreg {

// What is left of a chunk.
class ChunkNorms {
 public:
  explicit ChunkNorms(std::int64_t chunks)
      : sums_(chunks), maximum_(static_cast<std::size_t>(chunks)), nonfinite_(maximum_.size()) {}

  void keep(std::int64_t chunk, NormLanes& lanes) {
    const auto place = static_cast<std::size_t>(chunk);
    sums_.keep(chunk, lanes);
    maximum_[place] = lanes.maximum;
    nonfinite_[place] = static_cast<std::int32_t>(lanes.nonfinite);
  }

  Norm of_item(std::int64_t first, std::int64_t chunks) {
    Norm norm;
    std::uint64_t most = 0;
    for (std::int64_t chunk = first; chunk < first + chunks; ++chunk) {
      const auto place = static_cast<std::size_t>(chunk);
      most = std::max(most, maximum_[place]);
      norm.nonfinite += nonfinite_[place];
    }
    norm.l1 = sums_.l1(first, chunks);
    norm.l2 = sums_.l2(first, chunks);
    norm.zeros = sums_.zeros(first, chunks);
    std::memcpy(&norm.maximum, &most, sizeof most);
    return norm;
  }

 private:
  ChunkSums sums_;
  std::vector<std::uint64_t> maximum_;
  std::vector<std::int32_t> nonfinite_;
};

// Calls measure(item, first element, count, lanes) for each chunk, on threads; it must not throw. Throws
// std::bad_alloc.
template <class Item, class Measure>
void measure_chunks(const Item* items, std::size_t item_count, Measure measure, Norm* norms, Owner owner) {
  ChunkNorms* kept = nullptr;
  SharedChunks work(items, item_count,
                    [&](const Item& item, std::int64_t begin, std::int64_t count, std::int64_t chunk) {
                      NormLanes lanes;
                      measure(item, begin, count, lanes);
                      kept->keep(chunk, lanes);
                    });
  ChunkNorms chunks(work.chunks());
  kept = &chunks;
  work.run(owner);
  for (std::size_t i = 0; i < item_count; ++i) {
    norms[i] = chunks.of_item(work.first_chunk(i), work.first_chunk(i + 1) - work.first_chunk(i));
  }
}

}  // namespace fastreg
