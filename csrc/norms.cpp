#include "norms.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "canonical_sum.h"
#include "cpu/float_environment.h"
#include "cpu/norm_loops.h"
#include "cpu/policy.h"
#include "cpu/shared_chunks.h"

namespace fastreg {
namespace {

// What is gathered or converted at once, on the stack: threads that others have made may have but 64 KiB.
constexpr std::int64_t piece_size = 512;
static_assert(piece_size % lanes_per_chunk == 0);

bool lies_right(const NormItem& item) {
  return item.computed == nullptr && (item.layout == nullptr || item.layout->weights_consecutive);
}

char* address_of(const NormItem& item, std::int64_t element) {
  return static_cast<char*>(item.data) + element * static_cast<std::int64_t>(item_size(item.dtype));
}

// Reads elements in pieces, in the item's order and as one of the floating dtypes: piece(dtype, elements, count).
template <class Piece>
void read_pieces(const NormItem& item, std::int64_t begin, std::int64_t count, Piece piece) {
  alignas(64) char gathered[piece_size * sizeof(double)];
  alignas(64) double converted[piece_size];
  for (std::int64_t done = 0; done < count; done += piece_size) {
    const std::int64_t some = std::min(count - done, piece_size);
    const void* elements = gathered;
    if (lies_right(item)) {
      elements = address_of(item, begin + done);
    } else if (item.computed != nullptr) {
      item.computed->read(begin + done, some, gathered);
    } else {
      gather(*item.layout, Operand::weights, item.data, item_size(item.dtype), begin + done, some, gathered);
    }
    if (is_floating(item.dtype)) {
      piece(item.dtype, elements, some);
    } else {
      convert_to_f64(item.dtype, elements, some, converted);
      piece(DType::f64, converted, some);
    }
  }
}

// Not inlined: its numbers would be on the stack of all others.
[[gnu::noinline]] void add_scaled(const NormLoops& loops, DType dtype, const void* elements, std::int64_t count,
                                  int exponent, NormLanes& lanes) {
  double numbers[piece_size];
  loops.widen[static_cast<std::size_t>(dtype)](elements, count, numbers);
  for (std::int64_t i = 0; i < count; ++i) {
    numbers[i] = std::ldexp(numbers[i], exponent);
  }
  loops.add[static_cast<std::size_t>(DType::f64)](numbers, count, lanes);
}

NormLanes measure_chunk(const NormLoops& loops, const NormItem& item, std::int64_t begin, std::int64_t count,
                        int exponent) {
  NormLanes lanes;
  if (exponent == 0 && is_floating(item.dtype) && lies_right(item)) {
    loops.add[static_cast<std::size_t>(item.dtype)](address_of(item, begin), count, lanes);
    return lanes;
  }
  read_pieces(item, begin, count, [&](DType dtype, const void* elements, std::int64_t some) {
    if (exponent == 0) {
      loops.add[static_cast<std::size_t>(dtype)](elements, some, lanes);
    } else {
      add_scaled(loops, dtype, elements, some, exponent, lanes);
    }
  });
  return lanes;
}

void scale_chunk(const NormLoops& loops, const NormItem& item, std::int64_t begin, std::int64_t count, double factor) {
  const auto scale = loops.scale[static_cast<std::size_t>(item.dtype)];
  if (lies_right(item)) {
    scale(address_of(item, begin), count, factor);
    return;
  }
  alignas(64) char piece[piece_size * sizeof(double)];
  const std::size_t size = item_size(item.dtype);
  for (std::int64_t done = 0; done < count; done += piece_size) {
    const std::int64_t some = std::min(count - done, piece_size);
    gather(*item.layout, Operand::weights, item.data, size, begin + done, some, piece);
    scale(piece, some, factor);
    scatter(*item.layout, Operand::weights, item.data, size, begin + done, some, piece);
  }
}

const NormLoops& loops_for(const NormItem* items, std::size_t item_count, bool writes) {
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < item_count; ++i) {
    bytes += items[i].count * static_cast<std::int64_t>(item_size(items[i].dtype));
  }
  return norm_loops(policy().variant(bytes, writes));
}

// What is left of a chunk.
struct ChunkNorms {
  explicit ChunkNorms(std::int64_t chunks)
      : l1(static_cast<std::size_t>(chunks)),
        l2(l1.size()),
        maximum(l1.size()),
        zeros(l1.size()),
        nonfinite(l1.size()) {}

  void keep(std::int64_t chunk, NormLanes& lanes) {
    const auto place = static_cast<std::size_t>(chunk);
    halve_lanes(lanes.l1, lanes_per_chunk);
    halve_lanes(lanes.l2, lanes_per_chunk);
    l1[place] = lanes.l1[0];
    l2[place] = lanes.l2[0];
    maximum[place] = lanes.maximum;
    zeros[place] = static_cast<std::int32_t>(lanes.zeros);
    nonfinite[place] = static_cast<std::int32_t>(lanes.nonfinite);
  }

  Norm of_item(std::int64_t first, std::int64_t chunks) {
    Norm norm;
    std::uint64_t most = 0;
    for (std::int64_t chunk = first; chunk < first + chunks; ++chunk) {
      const auto place = static_cast<std::size_t>(chunk);
      most = std::max(most, maximum[place]);
      norm.zeros += zeros[place];
      norm.nonfinite += nonfinite[place];
    }
    norm.l1 = sum_of_chunk_sums(l1.data() + first, chunks);
    norm.l2 = sum_of_chunk_sums(l2.data() + first, chunks);
    std::memcpy(&norm.maximum, &most, sizeof most);
    return norm;
  }

  std::vector<double> l1;
  std::vector<double> l2;
  std::vector<std::uint64_t> maximum;
  std::vector<std::int32_t> zeros;
  std::vector<std::int32_t> nonfinite;
};

}  // namespace

void measure_items(const NormItem* items, std::size_t item_count, int exponent, Norm* norms, Owner owner) {
  const FloatEnvironment environment;
  const NormLoops& loops = loops_for(items, item_count, false);
  ChunkNorms* kept = nullptr;
  SharedChunks work(items, item_count,
                    [&](const NormItem& item, std::int64_t begin, std::int64_t count, std::int64_t chunk) {
                      NormLanes lanes = measure_chunk(loops, item, begin, count, exponent);
                      kept->keep(chunk, lanes);
                    });
  ChunkNorms chunks(work.chunks());
  kept = &chunks;
  work.run(owner);
  for (std::size_t i = 0; i < item_count; ++i) {
    norms[i] = chunks.of_item(work.first_chunk(i), work.first_chunk(i + 1) - work.first_chunk(i));
  }
}

void scale_items(const NormItem* items, std::size_t item_count, double factor, Owner owner) {
  const FloatEnvironment environment;
  const NormLoops& loops = loops_for(items, item_count, true);
  // The payload of another NaN would be rounded into a number of bfloat16.
  const double plain = std::isnan(factor) ? std::numeric_limits<double>::quiet_NaN() : factor;
  SharedChunks work(items, item_count, [&](const NormItem& item, std::int64_t begin, std::int64_t count, std::int64_t) {
    scale_chunk(loops, item, begin, count, plain);
  });
  work.run(owner);
}

}  // namespace fastreg
