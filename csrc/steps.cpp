#include "steps.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "canonical_sum.h"
#include "cpu/float_environment.h"
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

// What is left of a chunk; nothing where no item has a penalty.
struct ChunkPenalties {
  void resize(std::int64_t chunks) {
    l1.resize(static_cast<std::size_t>(chunks));
    l2.resize(l1.size());
    zeros.resize(l1.size());
  }

  void keep(std::int64_t chunk, StepLanes& lanes) {
    const auto place = static_cast<std::size_t>(chunk);
    halve_lanes(lanes.l1, lanes_per_chunk);
    halve_lanes(lanes.l2, lanes_per_chunk);
    l1[place] = lanes.l1[0];
    l2[place] = lanes.l2[0];
    zeros[place] = static_cast<std::int32_t>(lanes.zeros);
  }

  std::vector<double> l1;
  std::vector<double> l2;
  std::vector<std::int32_t> zeros;
};

// d of an item, computed as it is read.
class ClippedGradients final : public ComputedElements {
 public:
  ClippedGradients(const StepLoops& loops, const StepItem& item, Clip clip)
      : compute_(loops.gradient[static_cast<std::size_t>(item.dtype)][is_converted(item) ? 1 : 0]),
        item_(item),
        with_penalty_(clip == Clip::total && (item.rule.operations & (op_gradient_l1 | op_gradient_l2)) != 0) {}

  // Whether the norms of d are those of the gradients as they are: a sign changes none.
  bool are_the_gradients() const {
    return item_.gradients.layout == nullptr && !with_penalty_ && (item_.rule.operations & op_unscale) == 0;
  }

  void read(std::int64_t begin, std::int64_t count, void* to) const override {
    Staged parameters(item_.parameters, Operand::weights, item_.dtype);
    Staged gradients(item_.gradients, Operand::gradients, item_.gradient_dtype);
    const std::size_t size = item_size(arithmetic_of(item_.dtype));
    for (std::int64_t done = 0; done < count; done += piece_size) {
      const std::int64_t some = std::min(count - done, piece_size);
      compute_(item_.rule, with_penalty_, with_penalty_ ? parameters.read(begin + done, some) : nullptr,
               gradients.read(begin + done, some), some,
               static_cast<char*>(to) + static_cast<std::size_t>(done) * size);
    }
  }

 private:
  StepGradient compute_;
  const StepItem& item_;
  bool with_penalty_;
};

}  // namespace

void measure_steps(const StepItem* items, std::size_t item_count, Clip clip, int exponent, Norm* norms, Owner owner) {
  const StepLoops& loops = step_loops();
  std::vector<ClippedGradients> computed;
  std::vector<NormItem> measured;
  computed.reserve(item_count);
  measured.reserve(item_count);
  for (std::size_t i = 0; i < item_count; ++i) {
    const StepItem& item = items[i];
    const ClippedGradients& d = computed.emplace_back(loops, item, clip);
    if (d.are_the_gradients()) {
      measured.push_back({item.gradients.data, item.count, nullptr, item.gradient_dtype, nullptr});
    } else {
      measured.push_back({nullptr, item.count, nullptr, arithmetic_of(item.dtype), &d});
    }
  }
  measure_items(measured.data(), item_count, exponent, norms, owner);
}

void take_steps(const StepItem* items, std::size_t item_count, double* penalties, std::int64_t* zeros, Owner owner) {
  const FloatEnvironment environment;
  const StepLoops& loops = step_loops();
  ChunkPenalties kept;
  SharedChunks work(items, item_count,
                    [&](const StepItem& item, std::int64_t begin, std::int64_t count, std::int64_t chunk) {
                      StepLanes lanes;
                      take_chunk(loops, item, begin, count, lanes);
                      if (item.rule.counts) {
                        kept.keep(chunk, lanes);
                      }
                    });
  if (std::any_of(items, items + item_count, [](const StepItem& item) { return item.rule.counts; })) {
    kept.resize(work.chunks());
  }
  work.run(owner);
  for (std::size_t i = 0; i < item_count; ++i) {
    penalties[i] = 0.0;
    zeros[i] = 0;
    if (items[i].rule.counts) {
      const std::int64_t first = work.first_chunk(i);
      const std::int64_t chunks = work.first_chunk(i + 1) - first;
      penalties[i] = penalty_value(items[i].rule.coefficients, sum_of_chunk_sums(kept.l1.data() + first, chunks),
                                   sum_of_chunk_sums(kept.l2.data() + first, chunks));
      zeros[i] = std::accumulate(kept.zeros.begin() + first, kept.zeros.begin() + first + chunks, std::int64_t{0});
    }
  }
}

}  // namespace fastreg
