#include "plan.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "canonical_sum.h"
#include "cpu/dispatch.h"
#include "cpu/float_environment.h"
#include "cpu/pages.h"
#include "cpu/policy.h"
#include "cpu/pool.h"
#include "cpu/sharing.h"

namespace fastreg {
namespace {

bool writes_gradient(unsigned outputs) { return (outputs & output_gradient) != 0; }
bool wants_value(unsigned outputs) { return (outputs & output_value) != 0; }

std::int64_t bytes_of(const Item& item, std::int64_t count) {
  return count * static_cast<std::int64_t>(item_size(item.dtype));
}
std::int64_t bytes_of(const Item& item) { return bytes_of(item, item.count); }

// All bytes that a call reads or writes.
std::int64_t bytes_touched(const Item* items, std::size_t item_count, unsigned outputs) {
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < item_count; ++i) {
    bytes += bytes_of(items[i]);
  }
  return writes_gradient(outputs) ? 2 * bytes : bytes;
}

// What the memory of new gradients decides, for the largest of them. One answer for the call, before its tasks have
// mapped any page.
struct NewGradients {
  NewGradients(const Item* items, std::size_t item_count, std::int64_t bytes, unsigned outputs, const Policy& rules) {
    if (!writes_gradient(outputs) || (outputs & (output_add | output_prox)) != 0 || !rules.streams(bytes, false)) {
      return;
    }
    const Item& largest = *std::max_element(items, items + item_count,
                                            [](const Item& a, const Item& b) { return bytes_of(a) < bytes_of(b); });
    if (rules.streams(bytes_of(largest), false)) {
      are_unmapped = is_unmapped(largest.gradients, bytes_of(largest));
      bytes_worth_streaming = are_unmapped ? rules.bytes_worth_streaming_if_new : rules.bytes_worth_streaming;
    }
  }

  bool are_unmapped = false;
  std::int64_t bytes_worth_streaming = never;  // of one item
};

// How a call is worked: its outputs, and what the policy says of so many bytes.
struct Conduct {
  Conduct(const Item* items, std::size_t item_count, unsigned asked, const ChosenPolicy& chosen)
      : Conduct(items, item_count, asked, chosen, bytes_touched(items, item_count, asked)) {}
  Conduct(const Item* items, std::size_t item_count, unsigned asked, const ChosenPolicy& chosen, std::int64_t bytes)
      : outputs(asked), new_gradients(items, item_count, bytes, asked, *chosen.policy) {
    const Variant variant = chosen.variant(bytes, writes_gradient(outputs));
    cells = &kernels().cells[static_cast<std::size_t>(variant)];
    cells_of_halves = &kernels().cells[static_cast<std::size_t>(chosen.policy->halves.value_or(variant))];
    prox = &kernels().prox[static_cast<std::size_t>(variant)];
  }

  const Cells& cells_of(DType dtype) const {
    return dtype == DType::f16 || dtype == DType::bf16 ? *cells_of_halves : *cells;
  }

  unsigned outputs;
  NewGradients new_gradients;
  const Cells* cells;
  const Cells* cells_of_halves;
  const ProxCells* prox;
};

// What a call needs besides its arrays: one number per chunk and term, and of zeros.
struct ChunkNumbers {
  double* l1;
  double* l2;
  std::int64_t* zeros;  // of proximal steps with the value, else null
};

bool weights_lie_right(const Item& item) { return item.layout == nullptr || item.layout->weights_consecutive; }
bool gradients_lie_right(const Item& item, unsigned outputs) {
  return item.layout == nullptr || !writes_gradient(outputs) || item.layout->gradients_consecutive;
}
// Elements that lie apart, in another order than their partners, or that are integers.
bool is_staged(const Item& item, unsigned outputs) {
  return (item.coefficients.terms != 0 || is_prox(outputs)) &&
         !(is_floating(item.dtype) && weights_lie_right(item) && gradients_lie_right(item, outputs));
}

// The kernel with streaming stores, where there is one that this item is for; else null.
Kernel streaming_kernel(const Item& item, const Conduct& conduct) {
  if (item.layout != nullptr || !is_floating(item.dtype) ||
      bytes_of(item) < conduct.new_gradients.bytes_worth_streaming ||
      reinterpret_cast<std::uintptr_t>(item.gradients) % 16 != 0 || item.gradients == item.weights) {
    return nullptr;
  }
  return conduct.cells_of(item.dtype)
      .streaming_kernels[static_cast<std::size_t>(item.dtype)][item.coefficients.terms - 1][conduct.outputs];
}

// How many elements of a chunk need memory beside the item's own.
std::int64_t elements_aside(const Item& item, const Conduct& conduct) {
  return is_staged(item, conduct.outputs) ? std::min<std::int64_t>(item.count, chunk_size) : 0;
}

// Memory in which the chunks of staged items are laid out for the kernels, for each thread of a call. Not on the stack,
// which may be as small as 64 KiB in threads that others have made.
class Stages {
 public:
  // Room for so many elements of a chunk; nothing is allocated for none.
  Stages(std::int64_t elements, int threads) {
    if (elements != 0) {
      memory_ = std::make_unique<Memory>(static_cast<std::size_t>(elements), static_cast<std::size_t>(threads));
    }
  }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  struct Memory {
    Memory(std::size_t elements, std::size_t threads)
        : count(threads),
          lines_each((elements * sizeof(double) + sizeof(Line) - 1) / sizeof(Line)),
          lines(new Line[2 * lines_each * threads]),
          taken(std::make_unique<std::atomic<bool>[]>(threads)) {}
    std::size_t count;
    std::size_t lines_each;
    std::unique_ptr<Line[]> lines;
    std::unique_ptr<std::atomic<bool>[]> taken;
  };

 public:
  // A thread's own: room for the weights and for the gradients of a chunk.
  class Stage {
   public:
    explicit Stage(const Stages& stages) : memory_(*stages.memory_) {
      while (memory_.taken[place_].exchange(true, std::memory_order_acquire)) {
        place_ = (place_ + 1) % memory_.count;
      }
    }
    ~Stage() { memory_.taken[place_].store(false, std::memory_order_release); }
    Stage(const Stage&) = delete;
    Stage& operator=(const Stage&) = delete;

    void* weights() const { return &memory_.lines[2 * place_ * memory_.lines_each]; }
    void* gradients() const { return &memory_.lines[(2 * place_ + 1) * memory_.lines_each]; }

   private:
    const Memory& memory_;
    std::size_t place_ = 0;
  };

 private:
  std::unique_ptr<Memory> memory_;
};

// What scatter takes zeros from.
const char chunk_of_zeros[chunk_size * sizeof(double)] = {};

// The chunks of one item from `first` on; `sums` are those of the first of them.
class ChunkRun {
 public:
  ChunkRun(const Item& item, const Conduct& conduct, const Stages& stages)
      : item_(item), outputs_(conduct.outputs), conduct_(conduct), stages_(stages) {}

  void run(std::int64_t first, std::int64_t chunks, ChunkNumbers sums) const {
    const std::int64_t begin = first * chunk_size;
    const std::int64_t count = std::min(item_.count - begin, chunks * chunk_size);
    if (item_.coefficients.terms == 0 && !is_prox(outputs_)) {
      write_zeros(begin, count);
      return;
    }
    if (!is_staged(item_, outputs_)) {
      const Kernel streaming = streaming_kernel(item_, conduct_);
      const Kernel chosen = streaming != nullptr ? streaming : kernel();
      if (!conduct_.new_gradients.are_unmapped) {
        chosen(arguments_for(begin, count, sums));
        return;
      }
      // Pages are written as soon as they are mapped, while what the system wrote to them lies in a cache.
      constexpr std::int64_t most = 16 * chunk_size;
      for (std::int64_t done = 0; done < count; done += most) {
        const std::int64_t part = std::min(count - done, most);
        map_upwards(gradients_at(begin + done), bytes_of(item_, part), bytes_of(item_, item_.count - begin - done));
        chosen(arguments_for(begin + done, part, sums));
        sums.l1 += most / chunk_size;
        sums.l2 += most / chunk_size;
      }
      return;
    }
    const Stages::Stage stage(stages_);
    for (std::int64_t done = 0; done < count; done += chunk_size, ++sums.l1, ++sums.l2) {
      run_staged(begin + done, std::min<std::int64_t>(count - done, chunk_size), stage, sums);
      sums.zeros += sums.zeros == nullptr ? 0 : 1;
    }
  }

 private:
  Kernel kernel() const {
    const auto dtype = static_cast<std::size_t>(is_floating(item_.dtype) ? item_.dtype : DType::f64);
    if (is_prox(outputs_)) {
      return conduct_.prox->kernels[dtype][item_.coefficients.terms][wants_value(outputs_) ? 1 : 0];
    }
    return conduct_.cells_of(item_.dtype).kernels[dtype][item_.coefficients.terms - 1][outputs_];
  }

  KernelArguments arguments_for(std::int64_t begin, std::int64_t count, ChunkNumbers sums) const {
    return {weights_at(begin),
            gradients_at(begin),
            count,
            item_.coefficients.gradient_l1,
            item_.coefficients.gradient_l2,
            sums.l1,
            sums.l2,
            sums.zeros};
  }

  const void* weights_at(std::int64_t element) const {
    return static_cast<const char*>(item_.weights) + element * static_cast<std::int64_t>(item_size(item_.dtype));
  }
  void* gradients_at(std::int64_t element) const {
    return writes_gradient(outputs_)
               ? static_cast<char*>(item_.gradients) + element * static_cast<std::int64_t>(item_size(item_.dtype))
               : nullptr;
  }

  void run_staged(std::int64_t begin, std::int64_t count, const Stages::Stage& stage, ChunkNumbers sums) const {
    void* weights = stage.weights();
    void* gradients = stage.gradients();
    const bool gradients_apart = !gradients_lie_right(item_, outputs_);
    const std::size_t size = item_size(item_.dtype);
    KernelArguments arguments = arguments_for(begin, count, sums);
    if (!weights_lie_right(item_)) {
      gather(*item_.layout, Operand::weights, item_.weights, size, begin, count, weights);
      arguments.weights = weights;
    }
    if (!is_floating(item_.dtype)) {
      // Integers have no gradient, so the other buffer is free.
      convert_to_f64(item_.dtype, arguments.weights, count, static_cast<double*>(gradients));
      arguments.weights = gradients;
    }
    if (gradients_apart) {
      if ((outputs_ & output_add) != 0) {
        gather(*item_.layout, Operand::gradients, item_.gradients, size, begin, count, gradients);
      }
      arguments.gradients = gradients;
    }
    kernel()(arguments);
    if (gradients_apart) {
      scatter(*item_.layout, Operand::gradients, item_.gradients, size, begin, count, gradients);
    }
  }

  // Without a term a new gradient is +0, and an accumulated one is left alone.
  void write_zeros(std::int64_t begin, std::int64_t count) const {
    if (!writes_gradient(outputs_) || (outputs_ & output_add) != 0) {
      return;
    }
    const std::size_t size = item_size(item_.dtype);
    if (item_.layout == nullptr || item_.layout->gradients_consecutive) {
      std::memset(gradients_at(begin), 0, static_cast<std::size_t>(count) * size);
      return;
    }
    for (std::int64_t done = 0; done < count; done += chunk_size) {
      scatter(*item_.layout, Operand::gradients, item_.gradients, size, begin + done,
              std::min<std::int64_t>(count - done, chunk_size), chunk_of_zeros);
    }
  }

  const Item& item_;
  unsigned outputs_;
  const Conduct& conduct_;
  const Stages& stages_;
};

double value_of(const Item& item, ChunkNumbers sums) {
  const std::int64_t chunks = chunk_count(item.count);
  const auto sum = [&](double* chunk_sums, unsigned term) {
    return (item.coefficients.terms & term) != 0 ? sum_of_chunk_sums(chunk_sums, chunks) : 0.0;
  };
  return penalty_value(item.coefficients, sum(sums.l1, term_l1), sum(sums.l2, term_l2));
}

std::int64_t zeros_of(const Item& item, ChunkNumbers sums) {
  return std::accumulate(sums.zeros, sums.zeros + chunk_count(item.count), std::int64_t{0});
}

// Chunk sums, on the stack for small tensors.
class SumMemory {
 public:
  SumMemory(std::int64_t chunks, unsigned outputs) : chunks_(chunks) {
    if (2 * chunks > static_cast<std::int64_t>(std::size(few_))) {
      many_.reset(new double[static_cast<std::size_t>(2 * chunks)]);
      memory_ = many_.get();
    }
    if (is_prox(outputs) && wants_value(outputs)) {
      zeros_ = few_zeros_;
      if (std::cmp_greater(chunks, std::size(few_zeros_))) {
        many_zeros_.reset(new std::int64_t[static_cast<std::size_t>(chunks)]);
        zeros_ = many_zeros_.get();
      }
    }
  }
  ChunkNumbers from(std::int64_t chunk) const {
    return {memory_ + chunk, memory_ + chunks_ + chunk, zeros_ == nullptr ? nullptr : zeros_ + chunk};
  }

 private:
  double few_[128];
  std::int64_t few_zeros_[16];
  std::unique_ptr<double[]> many_;
  std::unique_ptr<std::int64_t[]> many_zeros_;
  double* memory_ = few_;
  std::int64_t* zeros_ = nullptr;
  std::int64_t chunks_;
};

// What a call returns for each item: the value, and of proximal steps the number of zeros.
struct Results {
  double* values;
  std::int64_t* zeros;

  void set(std::size_t place, const Item& item, ChunkNumbers sums) const {
    values[place] = value_of(item, sums);
    if (sums.zeros != nullptr) {
      zeros[place] = zeros_of(item, sums);
    }
  }
};

// One item after the other, on this thread.
void evaluate_in_turn(const Item* items, std::size_t item_count, const Conduct& conduct, Results results) {
  std::int64_t most_chunks = 0;
  std::int64_t aside = 0;
  for (std::size_t i = 0; i < item_count; ++i) {
    most_chunks = std::max(most_chunks, chunk_count(items[i].count));
    aside = std::max(aside, elements_aside(items[i], conduct));
  }
  const SumMemory sums(most_chunks, conduct.outputs);
  const Stages stages(aside, 1);
  for (std::size_t i = 0; i < item_count; ++i) {
    if (items[i].count != 0) {
      ChunkRun(items[i], conduct, stages).run(0, chunk_count(items[i].count), sums.from(0));
    }
    if (wants_value(conduct.outputs)) {
      results.set(i, items[i], sums.from(0));
    }
  }
}

// All items' chunks in one row, and tasks that are runs of them, whatever items they belong to.
class SharedWork {
 public:
  SharedWork(const Item* items, std::size_t item_count, const Conduct& conduct, const Crew& crew)
      : items_(items),
        conduct_(conduct),
        crew_(crew),
        first_chunk_(first_chunks(items, item_count)),
        chunks_per_task_(chunks_per_task(first_chunk_.back(), crew.threads)),
        sums_(first_chunk_.back(), conduct.outputs),
        stages_(most_elements_aside(items, item_count, conduct), crew.threads) {}

  void run() {
    run_tasks([](void* work, std::int64_t task) { static_cast<SharedWork*>(work)->run_task(task); }, this,
              (first_chunk_.back() + chunks_per_task_ - 1) / chunks_per_task_, crew_);
  }

  void finish(Results results) const {
    for (std::size_t i = 0; i + 1 < first_chunk_.size(); ++i) {
      results.set(i, items_[i], sums_.from(first_chunk_[i]));
    }
  }

 private:
  static std::int64_t most_elements_aside(const Item* items, std::size_t item_count, const Conduct& conduct) {
    std::int64_t most = 0;
    for (std::size_t i = 0; i < item_count; ++i) {
      most = std::max(most, elements_aside(items[i], conduct));
    }
    return most;
  }

  static std::vector<std::int64_t> first_chunks(const Item* items, std::size_t item_count) {
    std::vector<std::int64_t> first(item_count + 1, 0);
    for (std::size_t i = 0; i < item_count; ++i) {
      first[i + 1] = first[i] + chunk_count(items[i].count);
    }
    return first;
  }

  void run_task(std::int64_t task) const {
    const FloatEnvironment environment;
    std::int64_t chunk = task * chunks_per_task_;
    const std::int64_t last = std::min(chunk + chunks_per_task_, first_chunk_.back());
    const auto after = std::upper_bound(first_chunk_.begin(), first_chunk_.end(), chunk);
    for (auto i = static_cast<std::size_t>(after - first_chunk_.begin() - 1); chunk < last; ++i) {
      const std::int64_t end = std::min(last, first_chunk_[i + 1]);
      if (end > chunk) {
        ChunkRun(items_[i], conduct_, stages_).run(chunk - first_chunk_[i], end - chunk, sums_.from(chunk));
        chunk = end;
      }
    }
  }

  const Item* items_;
  const Conduct& conduct_;
  Crew crew_;
  std::vector<std::int64_t> first_chunk_;
  std::int64_t chunks_per_task_;
  SumMemory sums_;
  Stages stages_;
};

void evaluate_together(const Item* items, std::size_t item_count, const Conduct& conduct, Results results,
                       const Crew& crew) {
  SharedWork work(items, item_count, conduct, crew);
  work.run();
  if (wants_value(conduct.outputs)) {
    work.finish(results);
  }
}

}  // namespace

void evaluate(const Item* items, std::size_t item_count, unsigned outputs, double* values, Owner owner,
              std::int64_t* zeros) {
  const FloatEnvironment environment;
  std::int64_t elements = 0;
  for (std::size_t i = 0; i < item_count; ++i) {
    elements += items[i].count;
  }
  const ChosenPolicy& chosen = policy();
  const Conduct conduct(items, item_count, outputs, chosen);
  on_threads(elements, owner, *chosen.policy, writes_gradient(outputs), [&](const Crew& crew) {
    if (crew.threads == 1) {
      evaluate_in_turn(items, item_count, conduct, {values, zeros});
    } else {
      evaluate_together(items, item_count, conduct, {values, zeros}, crew);
    }
  });
}

}  // namespace fastreg
