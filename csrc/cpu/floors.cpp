#include "floors.h"

#include <algorithm>
#include <atomic>

#include "../canonical_sum.h"
#include "dispatch.h"
#include "pool.h"
#include "sharing.h"

namespace fastreg {
namespace {

constexpr std::size_t chunk_bytes = chunk_size * sizeof(float);

// Runs pass(offset, bytes) over pieces that are as large as the tasks of as many float32, on as many threads as a
// kernel that reads or writes them would have.
template <class Pass>
void over_pieces(std::size_t bytes, bool writes, Pass pass) {
  struct Context {
    Pass& pass;
    std::size_t bytes;
    std::size_t piece;
  };
  const auto task = [](void* pointer, std::int64_t index) {
    auto& all = *static_cast<Context*>(pointer);
    const std::size_t offset = static_cast<std::size_t>(index) * all.piece;
    all.pass(offset, std::min(all.piece, all.bytes - offset));
  };
  const auto elements = static_cast<std::int64_t>(bytes / sizeof(float));
  on_threads(elements, Owner::other, *policy().policy, writes, [&](const Crew& crew) {
    const auto piece = static_cast<std::size_t>(chunks_per_task(chunk_count(elements), crew.threads)) * chunk_bytes;
    Context context{pass, bytes, piece};
    run_tasks(task, &context, static_cast<std::int64_t>((bytes + piece - 1) / piece), crew);
  });
}

}  // namespace

std::uint64_t floor_read(const void* source, std::size_t bytes) {
  std::atomic<std::uint64_t> seen{0};
  const FloorLoops& loops = floor_loops();
  over_pieces(bytes, false, [&](std::size_t offset, std::size_t size) {
    seen.fetch_xor(loops.read(static_cast<const char*>(source) + offset, size), std::memory_order_relaxed);
  });
  return seen.load();
}

void floor_copy(void* target, const void* source, std::size_t bytes) {
  const FloorLoops& loops = floor_loops();
  over_pieces(bytes, true, [&](std::size_t offset, std::size_t size) {
    loops.copy(static_cast<char*>(target) + offset, static_cast<const char*>(source) + offset, size);
  });
}

void floor_add(void* target, const void* source, std::size_t bytes, DType dtype) {
  const FloorLoops& loops = floor_loops();
  const auto add = dtype == DType::f64 ? loops.add_f64 : loops.add_f32;
  over_pieces(bytes, true, [&](std::size_t offset, std::size_t size) {
    add(static_cast<char*>(target) + offset, static_cast<const char*>(source) + offset, size);
  });
}

void floor_step(const FloorStep& step) {
  const FloorLoops& loops = floor_loops();
  const auto at = [](void* data, std::size_t offset) {
    return data == nullptr ? nullptr : static_cast<char*>(data) + offset;
  };
  over_pieces(step.bytes, true, [&](std::size_t offset, std::size_t size) {
    const std::size_t moments = offset * step.moment_times;
    loops.step({at(step.parameters, offset), static_cast<const char*>(step.gradients) + offset, at(step.first, moments),
                at(step.second, moments), size, step.moment_times});
  });
}

}  // namespace fastreg
