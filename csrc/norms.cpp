#include "norms.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "canonical_sum.h"
#include "chunk_norms.h"
#include "cpu/float_environment.h"
#include "cpu/norm_loops.h"
#include "cpu/policy.h"
#include "cpu/shared_chunks.h"

namespace fastreg {
namespace {

// What is gathered or converted at once, on the stack: threads that others have made may have but 64 KiB.
constexpr std::int64_t piece_size = 512;
static_assert(piece_size % lanes_per_chunk == 0);

bool lies_right(const NormItem& item) { return item.layout == nullptr || item.layout->weights_consecutive; }

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

void measure_chunk(const NormLoops& loops, const NormItem& item, std::int64_t begin, std::int64_t count, int exponent,
                   NormLanes& lanes) {
  if (exponent == 0 && is_floating(item.dtype) && lies_right(item)) {
    loops.add[static_cast<std::size_t>(item.dtype)](address_of(item, begin), count, lanes);
    return;
  }
  read_pieces(item, begin, count, [&](DType dtype, const void* elements, std::int64_t some) {
    if (exponent == 0) {
      loops.add[static_cast<std::size_t>(dtype)](elements, some, lanes);
    } else {
      add_scaled(loops, dtype, elements, some, exponent, lanes);
    }
  });
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

}  // namespace

void measure_items(const NormItem* items, std::size_t item_count, int exponent, Norm* norms, Owner owner) {
  const FloatEnvironment environment;
  const NormLoops& loops = loops_for(items, item_count, false);
  measure_chunks(
      items, item_count,
      [&](const NormItem& item, std::int64_t begin, std::int64_t count, NormLanes& lanes) {
        measure_chunk(loops, item, begin, count, exponent, lanes);
      },
      norms, owner);
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
