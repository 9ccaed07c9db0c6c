// A call is a list of items, one per tensor; one tensor is a list of one. The plan cuts the items into chunks, has the
// chunks worked by threads, and adds the chunk sums up by the canonical sum. What it is given has been checked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "layout.h"
#include "owner.h"
#include "penalty.h"

namespace fastreg {

struct Item {
  const void* weights;
  void* gradients;
  std::int64_t count;
  Coefficients coefficients;
  const Layout* layout;  // null: weights and gradients are consecutive and in the same order
  DType dtype;
};

// Writes the gradients or proximal steps that `outputs` asks for, and the value of each item into `values` when it asks
// for values, with proximal steps the number of zeros into `zeros` too. Throws std::bad_alloc before anything is
// written. The owner of the items' memory decides whose threads work.
void evaluate(const Item* items, std::size_t item_count, unsigned outputs, double* values, Owner owner = Owner::other,
              std::int64_t* zeros = nullptr);

}  // namespace fastreg
