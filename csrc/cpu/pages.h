// Whether memory has been written before, or its pages are yet to be mapped: an array that was just allocated, by
// whomever, unless the allocator gave it memory that was used before. And how it is mapped, where that costs most.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fastreg {

// Asks for eight pages; false where the system does not tell.
inline bool is_unmapped([[maybe_unused]] const void* memory, [[maybe_unused]] std::int64_t bytes) {
#if defined(__linux__)
  static const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  constexpr int places = 8;
  int unmapped = 0;
  for (int i = 0; i < places; ++i) {
    const std::uintptr_t address =
        reinterpret_cast<std::uintptr_t>(memory) + static_cast<std::uintptr_t>(bytes / places * i);
    unsigned char is_resident = 0;
    if (mincore(reinterpret_cast<void*>(address / page * page), 1, &is_resident) == 0 && (is_resident & 1) == 0) {
      ++unmapped;
    }
  }
  return 2 * unmapped > places;
#else
  return false;
#endif
}

// Maps the large pages that begin within the `bytes` at `memory`, which are to be written, of the `left` that the array
// has from there. Linux zeroes a large page towards the place that was touched: from its end, where that is written
// first, and downwards takes twice as long as upwards. Asking writes nothing, so that other threads may write there.
inline void map_upwards([[maybe_unused]] const void* memory, [[maybe_unused]] std::int64_t bytes,
                        [[maybe_unused]] std::int64_t left) {
#if defined(__linux__)
  constexpr std::uintptr_t large = std::uintptr_t{2} << 20;
  constexpr std::uintptr_t small = 4096;
  constexpr int populate_write = 23;  // MADV_POPULATE_WRITE; older systems refuse it, which is no harm
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t end = begin + static_cast<std::uintptr_t>(bytes);
  const std::uintptr_t last = begin + static_cast<std::uintptr_t>(left) - 1;
  for (std::uintptr_t page = (begin + large - 1) / large * large; page < end; page += large) {
    const std::uintptr_t place = (last < page + large ? last : page + large - 1) / small * small;
    madvise(reinterpret_cast<void*>(place), small, populate_write);
  }
#endif
}

}  // namespace fastreg
