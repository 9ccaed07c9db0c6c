// Norms of tensors in one pass, and their scaling in place: the sums of |x| and x*x in the canonical order, the largest
// |x|, and the numbers of zeros and of elements that are not finite (docs/numerics.md, 10). What it is given has been
// checked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "layout.h"
#include "owner.h"

namespace fastreg {

struct NormItem {
  void* data;  // written by scale_items alone
  std::int64_t count;
  const Layout* layout;  // null: consecutive
  DType dtype;
};

struct Norm {
  double l1 = 0.0;       // the sum of |x|
  double l2 = 0.0;       // the sum of x*x, of x times 2^exponent
  double maximum = 0.0;  // NaN if an element is; with an exponent other than 0 unspecified, as is l1
  std::int64_t zeros = 0;
  std::int64_t nonfinite = 0;
};

// Throws std::bad_alloc before anything is written. The owner of the memory decides whose threads work.
void measure_items(const NormItem* items, std::size_t item_count, int exponent, Norm* norms,
                   Owner owner = Owner::other);

// Multiplies every element by the factor: both in the type that gradients are computed in, the product rounded there
// and then to the dtype. The dtypes are floating. Throws std::bad_alloc before anything is written.
void scale_items(const NormItem* items, std::size_t item_count, double factor, Owner owner = Owner::other);

}  // namespace fastreg
