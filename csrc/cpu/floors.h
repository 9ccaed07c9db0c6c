// The benchmark's floors: plain passes over memory with the threads and the tasks of evaluate.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../dtype.h"

namespace fastreg {

// One thread's loops, of one instruction set; sizes in bytes.
struct FloorLoops {
  // Returns the exclusive or of the words, so that it cannot be left out.
  std::uint64_t (*read)(const void* source, std::size_t bytes);
  void (*copy)(void* target, const void* source, std::size_t bytes);
  void (*add_f32)(void* target, const void* source, std::size_t bytes);
  void (*add_f64)(void* target, const void* source, std::size_t bytes);
};

namespace portable {
extern const FloorLoops floor_loops;
}
namespace avx2 {
extern const FloorLoops floor_loops;
}
namespace avx512 {
extern const FloorLoops floor_loops;
}
namespace neon {
extern const FloorLoops floor_loops;
}
namespace avx512_on_avx2 {
extern const FloorLoops floor_loops;
}

// The loops of the instruction set in use.
const FloorLoops& floor_loops();

std::uint64_t floor_read(const void* source, std::size_t bytes);
void floor_copy(void* target, const void* source, std::size_t bytes);
void floor_add(void* target, const void* source, std::size_t bytes, DType dtype);

}  // namespace fastreg
