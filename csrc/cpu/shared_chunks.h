// The chunks of many tensors, shared among threads: all items' chunks in one row, and tasks that are runs of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../canonical_sum.h"
#include "float_environment.h"
#include "sharing.h"

namespace fastreg {

// `Item` has a `count` of elements. Calls work(item, first element, count, chunk in the row) for each chunk; it must
// not throw.
template <class Item, class Work>
class SharedChunks {
 public:
  SharedChunks(const Item* items, std::size_t item_count, Work work)
      : items_(items), work_(work), first_chunk_(item_count + 1, 0) {
    for (std::size_t i = 0; i < item_count; ++i) {
      first_chunk_[i + 1] = first_chunk_[i] + chunk_count(items[i].count);
      elements_ += items[i].count;
    }
  }

  std::int64_t first_chunk(std::size_t item) const { return first_chunk_[item]; }
  std::int64_t chunks() const { return first_chunk_.back(); }

  void run(Owner owner) {
    // Norms too, which only read, compute more than a value does.
    on_threads(elements_, owner, *policy().policy, true, [&](const Crew& crew) {
      if (crew.threads == 1) {
        run_chunks(0, chunks());
        return;
      }
      chunks_per_task_ = chunks_per_task(chunks(), crew.threads);
      run_tasks([](void* shared, std::int64_t task) { static_cast<SharedChunks*>(shared)->run_task(task); }, this,
                (chunks() + chunks_per_task_ - 1) / chunks_per_task_, crew);
    });
  }

 private:
  void run_task(std::int64_t task) const {
    const FloatEnvironment environment;
    const std::int64_t first = task * chunks_per_task_;
    run_chunks(first, std::min(first + chunks_per_task_, chunks()));
  }

  void run_chunks(std::int64_t chunk, std::int64_t last) const {
    const auto after = std::upper_bound(first_chunk_.begin(), first_chunk_.end(), chunk);
    for (auto i = static_cast<std::size_t>(after - first_chunk_.begin() - 1); chunk < last; ++i) {
      for (const std::int64_t end = std::min(last, first_chunk_[i + 1]); chunk < end; ++chunk) {
        const std::int64_t begin = (chunk - first_chunk_[i]) * chunk_size;
        work_(items_[i], begin, std::min<std::int64_t>(items_[i].count - begin, chunk_size), chunk);
      }
    }
  }

  const Item* items_;
  Work work_;
  std::vector<std::int64_t> first_chunk_;
  std::int64_t elements_ = 0;
  std::int64_t chunks_per_task_ = 1;
};

}  // namespace fastreg
