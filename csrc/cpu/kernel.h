// What an instruction set offers: a table of kernels, one per variant and cell.
//
// kernel.cpp is compiled once per instruction set and exports exactly one symbol, its table.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../canonical_sum.h"
#include "../penalty.h"

namespace fastreg {

// One run of consecutive elements that starts at a chunk's first element. `weights` may be `gradients`: then the
// gradient is that of the elements as they were.
struct KernelArguments {
  const void* weights;
  void* gradients;     // read if output_add, written if output_gradient, else ignored
  std::int64_t count;  // elements; > 0
  double gradient_l1;  // of a proximal step t1, see prox.inl
  double gradient_l2;  // and t2
  double* l1_sums;     // one per chunk, written if output_value and the term is there
  double* l2_sums;
  std::int64_t* zeros = nullptr;  // one per chunk, written by proximal steps if output_value
};

using Kernel = void (*)(const KernelArguments&);

// How a kernel goes over memory: the same bits, at other speeds. Which is for whom says policy.cpp; some instruction
// sets have one kernel for several.
enum class Variant : std::uint8_t {
  plain,   // fetches nothing ahead
  near,    // into L1, 4 KiB ahead
  far,     // and into L2, 8 KiB ahead
  pairs,   // nothing; values of two chunks at once
  cached,  // nothing; gradients row by row, sums of floats in registers of 32 bytes
  whole,   // nothing; values of two chunks at once, gradients row by row, all sums in whole registers; halves plain
};
constexpr std::size_t variant_count = 6;

// Proximal steps: `gradients` gets what `weights` become, and may be `weights`; penalty and zeros are of what it gets.
struct ProxCells {
  // [dtype][terms, which may be none][whether output_value is asked for]
  Kernel kernels[floating_dtype_count][term_cells + 1][2];
};

struct Cells {
  // [dtype][terms - 1][outputs]; null where outputs is no cell
  Kernel kernels[floating_dtype_count][term_cells][output_masks];
  // The same with streaming stores, for outputs that write a gradient without reading it; `gradients` must then be
  // aligned to 16 bytes and lie apart from `weights`. Null elsewhere.
  Kernel streaming_kernels[floating_dtype_count][term_cells][output_masks];
};

struct KernelTable {
  const char* name;
  int vector_bytes;
  Cells cells[variant_count];  // by variant
  const ProxCells* prox;       // by variant as well
};

namespace portable {
extern const KernelTable table;
extern const ProxCells prox_cells[variant_count];
}  // namespace portable
namespace avx2 {
extern const KernelTable table;
extern const ProxCells prox_cells[variant_count];
}  // namespace avx2
namespace avx512 {
extern const KernelTable table;
extern const ProxCells prox_cells[variant_count];
}  // namespace avx512
namespace neon {
extern const KernelTable table;
extern const ProxCells prox_cells[variant_count];
}  // namespace neon
// The 64-byte kernel compiled for AVX2: for tests on machines without AVX-512.
namespace avx512_on_avx2 {
extern const KernelTable table;
extern const ProxCells prox_cells[variant_count];
}  // namespace avx512_on_avx2

}  // namespace fastreg
