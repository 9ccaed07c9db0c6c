// The lane sums of chunks, folded: both sums and the zeros of each chunk, and what they are for a tensor together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "canonical_sum.h"

namespace fastreg {

class ChunkSums {
 public:
  explicit ChunkSums(std::int64_t chunks)
      : l1_(static_cast<std::size_t>(chunks)), l2_(l1_.size()), zeros_(l1_.size()) {}

  // `Lanes` has the lane sums of a chunk, which this folds, and its zeros.
  template <class Lanes>
  void keep(std::int64_t chunk, Lanes& lanes) {
    const auto place = static_cast<std::size_t>(chunk);
    halve_lanes(lanes.l1, lanes_per_chunk);
    halve_lanes(lanes.l2, lanes_per_chunk);
    l1_[place] = lanes.l1[0];
    l2_[place] = lanes.l2[0];
    zeros_[place] = static_cast<std::int32_t>(lanes.zeros);
  }

  // Of `chunks` chunks from the first on. The sums are to be asked for once: they are folded in place.
  double l1(std::int64_t first, std::int64_t chunks) { return sum_of_chunk_sums(l1_.data() + first, chunks); }
  double l2(std::int64_t first, std::int64_t chunks) { return sum_of_chunk_sums(l2_.data() + first, chunks); }
  std::int64_t zeros(std::int64_t first, std::int64_t chunks) const {
    return std::accumulate(zeros_.begin() + first, zeros_.begin() + first + chunks, std::int64_t{0});
  }

 private:
  std::vector<double> l1_;
  std::vector<double> l2_;
  std::vector<std::int32_t> zeros_;
};

}  // namespace fastreg
