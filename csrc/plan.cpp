#include "plan.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "canonical_sum.h"
#include "cpu/dispatch.h"
#include "cpu/float_environment.h"
#include "cpu/pool.h"

namespace fastreg {
namespace {

// A task is a run of at most this many chunks: 64 Ki elements amortise claiming, and leave both threads busy to the end.
constexpr std::int64_t chunks_per_task = 16;
// Waking a sleeping thread took 40 us where this was measured, so that two threads draw level with one at this many
// elements, of whatever type: in the caches the float64 additions are the limit, and they are the same for all.
constexpr std::int64_t elements_worth_a_thread = std::int64_t{1} << 18;
// A gradient that is only written goes past the caches from this size on: below it, whoever reads it next (an optimizer)
// finds it in a cache.
constexpr std::int64_t bytes_worth_streaming = std::int64_t{1} << 25;

bool writes_gradient(unsigned outputs) { return (outputs & output_gradient) != 0; }
bool wants_value(unsigned outputs) { return (outputs & output_value) != 0; }

// What the items need besides their arrays: one number per chunk and term.
struct ChunkSums {
  double* l1;
  double* l2;
};

// The chunks of one item from `first` on; `sums` are those of the first of them.
class ChunkRun {
 public:
  ChunkRun(const Item& item, unsigned outputs, const KernelTable& table)
      : item_(item), outputs_(outputs), kernel_(choose(item, outputs, table)) {}

  void run(std::int64_t first, std::int64_t chunks, ChunkSums sums) const {
    const std::int64_t begin = first * chunk_size;
    const std::int64_t count = std::min(item_.count - begin, chunks * chunk_size);
    if (item_.coefficients.terms == 0) {
      write_zeros(begin, count);
      return;
    }
    const bool weights_lie_right = item_.layout == nullptr || item_.layout->weights_consecutive;
    const bool gradients_lie_right =
        item_.layout == nullptr || !writes_gradient(outputs_) || item_.layout->gradients_consecutive;
    if (is_floating(item_.dtype) && weights_lie_right && gradients_lie_right) {
      kernel_({weights_at(begin), gradients_at(begin), count, item_.coefficients.gradient_l1,
               item_.coefficients.gradient_l2, sums.l1, sums.l2});
      return;
    }
    for (std::int64_t done = 0; done < count; done += chunk_size, ++sums.l1, ++sums.l2) {
      run_staged(begin + done, std::min<std::int64_t>(count - done, chunk_size), weights_lie_right,
                 gradients_lie_right, sums);
    }
  }

 private:
  static Kernel choose(const Item& item, unsigned outputs, const KernelTable& table) {
    if (item.coefficients.terms == 0) {
      return nullptr;
    }
    const auto dtype = static_cast<std::size_t>(is_floating(item.dtype) ? item.dtype : DType::f64);
    const std::size_t terms = item.coefficients.terms - 1;
    const Kernel streaming = table.streaming_kernels[dtype][terms][outputs];
    const bool large = item.count * static_cast<std::int64_t>(item_size(item.dtype)) >= bytes_worth_streaming;
    const bool aligned = reinterpret_cast<std::uintptr_t>(item.gradients) % 16 == 0;
    return streaming != nullptr && large && aligned && item.layout == nullptr && item.gradients != item.weights
               ? streaming
               : table.kernels[dtype][terms][outputs];
  }

  const void* weights_at(std::int64_t element) const {
    return static_cast<const char*>(item_.weights) + element * static_cast<std::int64_t>(item_size(item_.dtype));
  }
  void* gradients_at(std::int64_t element) const {
    return writes_gradient(outputs_)
               ? static_cast<char*>(item_.gradients) + element * static_cast<std::int64_t>(item_size(item_.dtype))
               : nullptr;
  }

  // One chunk of elements that lie apart, in another order than their partners, or that are integers.
  void run_staged(std::int64_t begin, std::int64_t count, bool weights_lie_right, bool gradients_lie_right,
                  ChunkSums sums) const {
    alignas(64) char weights[chunk_size * sizeof(double)];
    alignas(64) char gradients[chunk_size * sizeof(double)];
    const std::size_t size = item_size(item_.dtype);
    KernelArguments arguments{weights_at(begin), gradients_at(begin),     count,   item_.coefficients.gradient_l1,
                              item_.coefficients.gradient_l2, sums.l1, sums.l2};
    if (!weights_lie_right) {
      gather(*item_.layout, Operand::weights, item_.weights, size, begin, count, weights);
      arguments.weights = weights;
    }
    if (!is_floating(item_.dtype)) {
      // Integers have no gradient, so the other buffer is free.
      convert_to_f64(item_.dtype, arguments.weights, count, reinterpret_cast<double*>(gradients));
      arguments.weights = gradients;
    }
    if (!gradients_lie_right) {
      if ((outputs_ & output_add) != 0) {
        gather(*item_.layout, Operand::gradients, item_.gradients, size, begin, count, gradients);
      }
      arguments.gradients = gradients;
    }
    kernel_(arguments);
    if (!gradients_lie_right) {
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
    const char zeros[chunk_size * sizeof(double)] = {};
    for (std::int64_t done = 0; done < count; done += chunk_size) {
      scatter(*item_.layout, Operand::gradients, item_.gradients, size, begin + done,
              std::min<std::int64_t>(count - done, chunk_size), zeros);
    }
  }

  const Item& item_;
  unsigned outputs_;
  Kernel kernel_;
};

// All items' chunks in one row: the tasks are runs of them, whatever items they belong to.
class Plan {
 public:
  Plan(const Item* items, std::size_t item_count, unsigned outputs, double* values)
      : items_(items), item_count_(item_count), outputs_(outputs), values_(values), table_(kernels()) {
    first_chunk_ = first_chunk_memory_.reserve(item_count + 1);
    std::int64_t chunks = 0;
    for (std::size_t i = 0; i < item_count; ++i) {
      first_chunk_[i] = chunks;
      chunks += chunk_count(items[i].count);
      elements_ += items[i].count;
    }
    first_chunk_[item_count] = chunks;
    sums_.l1 = sum_memory_.reserve(static_cast<std::size_t>(2 * chunks));
    sums_.l2 = sums_.l1 + chunks;
  }

  void run() {
    const std::int64_t chunks = first_chunk_[item_count_];
    if (chunks == 0) {
      finish();
      return;
    }
    if (elements_ < elements_worth_a_thread) {
      run_chunks(0, chunks);
    } else {
      run_tasks([](void* plan, std::int64_t task) { static_cast<Plan*>(plan)->run_task(task); }, this,
                (chunks + chunks_per_task - 1) / chunks_per_task, get_num_threads());
    }
    finish();
  }

 private:
  // Memory for a few numbers without an allocation, for many with one.
  template <class T, std::size_t few>
  struct Scratch {
    T* reserve(std::size_t count) {
      if (count <= few) {
        return inside;
      }
      outside.reset(new T[count]);
      return outside.get();
    }
    T inside[few];
    std::unique_ptr<T[]> outside;
  };

  void run_task(std::int64_t task) {
    const FloatEnvironment environment;
    const std::int64_t first = task * chunks_per_task;
    run_chunks(first, std::min(first + chunks_per_task, first_chunk_[item_count_]));
  }

  void run_chunks(std::int64_t first, std::int64_t last) {
    const std::int64_t* after = std::upper_bound(first_chunk_, first_chunk_ + item_count_ + 1, first);
    for (auto i = static_cast<std::size_t>(after - first_chunk_ - 1); first < last; ++i) {
      const std::int64_t end = std::min(last, first_chunk_[i + 1]);
      if (end > first) {
        ChunkRun(items_[i], outputs_, table_).run(first - first_chunk_[i], end - first, {sums_.l1 + first, sums_.l2 + first});
        first = end;
      }
    }
  }

  void finish() {
    if (!wants_value(outputs_)) {
      return;
    }
    for (std::size_t i = 0; i < item_count_; ++i) {
      const Coefficients& coefficients = items_[i].coefficients;
      const std::int64_t chunk = first_chunk_[i];
      const std::int64_t chunks = first_chunk_[i + 1] - chunk;
      const auto sum = [&](double* chunk_sums, unsigned term) {
        return (coefficients.terms & term) != 0 ? sum_of_chunk_sums(chunk_sums + chunk, chunks) : 0.0;
      };
      values_[i] = penalty_value(coefficients, sum(sums_.l1, term_l1), sum(sums_.l2, term_l2));
    }
  }

  const Item* items_;
  std::size_t item_count_;
  unsigned outputs_;
  double* values_;
  const KernelTable& table_;
  std::int64_t elements_ = 0;
  std::int64_t* first_chunk_;
  ChunkSums sums_;
  Scratch<std::int64_t, 8> first_chunk_memory_;
  Scratch<double, 128> sum_memory_;
};

// As many bytes as a task of float32 has.
constexpr std::size_t piece = chunks_per_task * chunk_size * sizeof(float);

// Runs pass(offset, bytes) over the pieces.
template <class Pass>
void over_pieces(std::size_t bytes, Pass pass) {
  struct Context {
    Pass& pass;
    std::size_t bytes;
  } context{pass, bytes};
  const auto task = [](void* pointer, std::int64_t index) {
    auto& all = *static_cast<Context*>(pointer);
    const std::size_t offset = static_cast<std::size_t>(index) * piece;
    all.pass(offset, std::min(piece, all.bytes - offset));
  };
  const auto pieces = static_cast<std::int64_t>((bytes + piece - 1) / piece);
  const bool small = bytes / sizeof(float) < elements_worth_a_thread;
  run_tasks(task, &context, pieces, small ? 1 : get_num_threads());
}

}  // namespace

void evaluate(const Item* items, std::size_t item_count, unsigned outputs, double* values) {
  const FloatEnvironment environment;
  Plan(items, item_count, outputs, values).run();
}

std::uint64_t floor_read(const void* source, std::size_t bytes) {
  std::atomic<std::uint64_t> seen{0};
  const KernelTable& table = kernels();
  over_pieces(bytes, [&](std::size_t offset, std::size_t size) {
    seen.fetch_xor(table.floor_read(static_cast<const char*>(source) + offset, size), std::memory_order_relaxed);
  });
  return seen.load();
}

void floor_copy(void* target, const void* source, std::size_t bytes) {
  const KernelTable& table = kernels();
  over_pieces(bytes, [&](std::size_t offset, std::size_t size) {
    table.floor_copy(static_cast<char*>(target) + offset, static_cast<const char*>(source) + offset, size);
  });
}

void floor_add(void* target, const void* source, std::size_t bytes, DType dtype) {
  const KernelTable& table = kernels();
  const auto add = dtype == DType::f64 ? table.floor_add_f64 : table.floor_add_f32;
  over_pieces(bytes, [&](std::size_t offset, std::size_t size) {
    add(static_cast<char*>(target) + offset, static_cast<const char*>(source) + offset, size);
  });
}

}  // namespace fastreg
