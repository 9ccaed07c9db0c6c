// Whether memory has been written before, or its pages are yet to be mapped: an array that was just allocated, by
// whomever, unless the allocator gave it memory that was used before.
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

}  // namespace fastreg
