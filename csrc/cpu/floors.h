// The benchmark's floors: plain passes over memory with the threads and the tasks of evaluate.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../dtype.h"

namespace fastreg {

// What the step of an optimizer reads and writes: parameters and moments are written, gradients and moments are what is
// added to them. All as float32, whatever they are, so that it is memory and not conversion.
struct FloorStep {
  void* parameters;
  const void* gradients;
  void* first;               // null: no momentum
  void* second;              // null: one moment
  std::size_t bytes;         // of the parameters, and as many of the gradients
  std::size_t moment_times;  // how many times as large each moment is: 1 or 2
};

// One thread's loops, of one instruction set; sizes in bytes.
struct FloorLoops {
  // Returns the exclusive or of the words, so that it cannot be left out.
  std::uint64_t (*read)(const void* source, std::size_t bytes);
  void (*copy)(void* target, const void* source, std::size_t bytes);
  void (*add_f32)(void* target, const void* source, std::size_t bytes);
  void (*add_f64)(void* target, const void* source, std::size_t bytes);
  void (*step)(const FloorStep& step);
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
void floor_step(const FloorStep& step);

}  // namespace fastreg
