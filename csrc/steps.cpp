#include "steps.h"

#include <algorithm>
#include <vector>

#include "canonical_sum.h"
#include "chunk_norms.h"
#include "chunk_sums.h"
#include "cpu/float_environment.h"
#include "cpu/policy.h"
#include "cpu/shared_chunks.h"
#include "cpu/step_loops.h"

namespace fastreg {
namespace {

// What is gathered at once, on the stack: threads that others have made may have but 64 KiB.
constexpr std::int64_t piece_size = 256;
static_assert(piece_size % lanes_per_chunk == 0);

bool is_converted(const StepItem& item) { return item.gradient_dtype != item.dtype; }

// An operand's elements where the loops can take them: in their place, or gathered.
class Staged {
 public:
  Staged(const StepOperand& operand, Operand role, DType dtype) : operand_(operand), role_(role), dtype_(dtype) {}

  bool lies_right() const { return operand_.layout == nullptr; }

  void* read(std::int64_t begin, std::int64_t count) {
    if (operand_.data == nullptr) {
      return nullptr;
    }
    if (operand_.layout == nullptr) {
      return static_cast<char*>(operand_.data) + begin * static_cast<std::int64_t>(item_size(dtype_));
    }
    gather(*operand_.layout, role_, operand_.data, item_size(dtype_), begin, count, memory_);
    return memory_;
  }

  void write(std::int64_t begin, std::int64_t count) const {
    if (operand_.layout != nullptr) {
      scatter(*operand_.layout, role_, operand_.data, item_size(dtype_), begin, count, memory_);
    }
  }

 private:
  StepOperand operand_;
  Operand role_;
  DType dtype_;
  alignas(64) char memory_[piece_size * sizeof(double)];
};

bool lies_right(const StepItem& item) {
  const auto is_staged = [](const StepOperand& operand) { return operand.layout != nullptr; };
  return !(is_staged(item.parameters) || is_staged(item.gradients) || is_staged(item.first) || is_staged(item.second) ||
           is_staged(item.largest));
}

void take_elements(const StepLoops& loops, const StepItem& item, const StepArguments& arguments, StepLanes& lanes) {
  loops.take[static_cast<std::size_t>(item.rule.algorithm)][static_cast<std::size_t>(item.dtype)]
            [is_converted(item) ? 1 : 0](item.rule, arguments, lanes);
}

void take_pieces(const StepLoops& loops, const StepItem& item, std::int64_t begin, std::int64_t count,
                 StepLanes& lanes) {
  const DType arithmetic = arithmetic_of(item.dtype);
  Staged parameters(item.parameters, Operand::weights, item.dtype);
  Staged gradients(item.gradients, Operand::gradients, item.gradient_dtype);
  Staged first(item.first, Operand::gradients, arithmetic);
  Staged second(item.second, Operand::gradients, arithmetic);
  Staged largest(item.largest, Operand::gradients, arithmetic);
  for (const std::int64_t end = begin + count; begin < end; begin += piece_size) {
    const std::int64_t some = std::min(end - begin, piece_size);
    take_elements(loops, item,
                  {parameters.read(begin, some), gradients.read(begin, some), first.read(begin, some),
                   second.read(begin, some), largest.read(begin, some), some},
                  lanes);
    parameters.write(begin, some);
    first.write(begin, some);
    second.write(begin, some);
    largest.write(begin, some);
  }
}

void take_chunk(const StepLoops& loops, const StepItem& item, std::int64_t begin, std::int64_t count,
                StepLanes& lanes) {
  if (!lies_right(item)) {
    take_pieces(loops, item, begin, count, lanes);
    return;
  }
  const auto at = [&](const StepOperand& operand, DType dtype) {
    return operand.data == nullptr
               ? nullptr
               : static_cast<char*>(operand.data) + begin * static_cast<std::int64_t>(item_size(dtype));
  };
  const DType arithmetic = arithmetic_of(item.dtype);
  take_elements(loops, item,
                {at(item.parameters, item.dtype), at(item.gradients, item.gradient_dtype), at(item.first, arithmetic),
                 at(item.second, arithmetic), at(item.largest, arithmetic), count},
                lanes);
}

void measure_chunk(const StepLoops& loops, const StepItem& item, bool with_penalty, int exponent, Variant variant,
                   std::int64_t begin, std::int64_t count, NormLanes& lanes) {
  const auto& measures = loops.measure[static_cast<std::size_t>(variant)][static_cast<std::size_t>(item.dtype)];
  const MeasureStep measure = measures[is_converted(item) ? 1 : 0];
  Staged parameters(with_penalty ? item.parameters : StepOperand{}, Operand::weights, item.dtype);
  Staged gradients(item.gradients, Operand::gradients, item.gradient_dtype);
  const std::int64_t piece = parameters.lies_right() && gradients.lies_right() ? count : piece_size;
  for (const std::int64_t end = begin + count; begin < end; begin += piece) {
    const std::int64_t some = std::min(end - begin, piece);
    measure(item.rule, with_penalty, exponent, parameters.read(begin, some), gradients.read(begin, some), some, lanes);
  }
}

}  // namespace

void measure_steps(const StepItem* items, std::size_t item_count, Clip clip, int exponent, Norm* norms, Owner owner) {
  const FloatEnvironment environment;
  const StepLoops& loops = step_loops();
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < item_count; ++i) {
    bytes += items[i].count * static_cast<std::int64_t>(item_size(items[i].gradient_dtype));
  }
  const Variant variant = policy().variant(bytes, false);
  measure_chunks(
      items, item_count,
      [&](const StepItem& item, std::int64_t begin, std::int64_t count, NormLanes& lanes) {
        const bool with_penalty =
            clip == Clip::total && (item.rule.operations & (op_gradient_l1 | op_gradient_l2)) != 0;
        measure_chunk(loops, item, with_penalty, exponent, variant, begin, count, lanes);
      },
      norms, owner);
}

void take_steps(const StepItem* items, std::size_t item_count, double* penalties, std::int64_t* zeros, Owner owner) {
  const FloatEnvironment environment;
  const StepLoops& loops = step_loops();
  ChunkSums kept(0);  // of all chunks, as soon as an item has a penalty
  SharedChunks work(items, item_count,
                    [&](const StepItem& item, std::int64_t begin, std::int64_t count, std::int64_t chunk) {
                      StepLanes lanes;
                      take_chunk(loops, item, begin, count, lanes);
                      if (item.rule.counts) {
                        kept.keep(chunk, lanes);
                      }
                    });
  if (std::any_of(items, items + item_count, [](const StepItem& item) { return item.rule.counts; })) {
    kept = ChunkSums(work.chunks());
  }
  work.run(owner);
  for (std::size_t i = 0; i < item_count; ++i) {
    penalties[i] = 0.0;
    zeros[i] = 0;
    if (items[i].rule.counts) {
      const std::int64_t first = work.first_chunk(i);
      const std::int64_t chunks = work.first_chunk(i + 1) - first;
      penalties[i] = penalty_value(items[i].rule.coefficients, kept.l1(first, chunks), kept.l2(first, chunks));
      zeros[i] = kept.zeros(first, chunks);
    }
  }
}

}  // namespace fastreg
