// Tensors in the stand-in's device memory, calls of the backend, and the CPU engine's answer to the same call.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../cpp/check.h"
#include "backend.h"
#include "plan.h"
#include "runtime.h"

namespace fastreg::test {

constexpr DType floating_dtypes[] = {DType::f16, DType::bf16, DType::f32, DType::f64};
constexpr unsigned output_cells[] = {1, 2, 3, 6, 7};
constexpr unsigned prox_cells[] = {10, 11};

using Numbers = std::vector<std::int64_t>;

// One tensor of a call: how many elements, how many elements after an allocation's start, which strengths. With
// extents, whose product is the count, it lies as the strides say, in elements; without, one element behind the other.
struct Shape {
  DType dtype;
  std::int64_t count;
  int offset = 0;
  std::uint32_t strengths = 0;
  // NOLINTBEGIN(readability-redundant-member-init): or compilers miss them where a tensor is dense
  Numbers extents = {};
  Numbers weight_strides = {};
  Numbers gradient_strides = {};
  // NOLINTEND(readability-redundant-member-init)
};

struct Memory {
  explicit Memory(std::size_t bytes, int device = 0);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* data = nullptr;
};

// A call's tensors twice: on a device, and as the CPU engine gets them.
class Problem {
 public:
  Problem(std::vector<Shape> shapes, std::vector<Coefficients> strengths, unsigned outputs, std::uint64_t seed,
          int device = 0, bool in_place = false);

  DeviceCall call(cudaStream_t stream = nullptr);
  // Compares what the device has written with what the CPU engine writes, bit by bit.
  void compare(const std::string& what);
  // These strengths from now on.
  void again(std::vector<Coefficients> strengths);
  // The CPU's side of a call, without comparing; gives the values.
  std::vector<double> step(std::vector<std::int64_t>* zeros = nullptr);
  bool device_is_untouched() const;
  // The CPU's weights, from the element of index 0 on.
  const char* weights(std::size_t tensor) const { return weights_[tensor].data() + weight_origins_[tensor]; }
  double device_value(std::size_t tensor) const;

 private:
  std::vector<Item> items() const;
  // The allocation that a tensor's gradients lie in, and the CPU's copy of it.
  const char* device_gradients(std::size_t tensor) const;
  const std::vector<char>& host_gradients(std::size_t tensor) const;

  std::vector<Shape> shapes_;
  std::vector<Coefficients> strengths_;
  unsigned outputs_;
  int device_;
  std::vector<DeviceItem> device_items_;
  std::vector<std::unique_ptr<Memory>> memory_;
  std::vector<std::vector<char>> weights_;    // the CPU's
  std::vector<std::vector<char>> gradients_;  // the CPU's; as they were until the first comparison
  // Bytes from an allocation's start to the element of index 0, and null for what needs no layout.
  std::vector<std::size_t> weight_origins_;
  std::vector<std::size_t> gradient_origins_;
  std::vector<std::unique_ptr<Layout>> layouts_;
  Memory values_;
  Memory total_;
  Memory zeros_;
  Memory total_zeros_;
  bool in_place_;
};

// Strengths for the terms of a mask, of both signs and odd enough for every rounding to matter.
Coefficients strengths_for(unsigned terms, double scale = 1.0);

// The same for proximal steps, which make about one element in four of what `fill` makes 0.
Coefficients thresholds_for(unsigned terms);

// Calls the backend, which must succeed.
void evaluate_on_device(const DeviceCall& call, const std::string& what, Recording** recording = nullptr);

// Calls the backend, waits for the device, and compares.
void run(Problem& problem, const std::string& what);

// One tensor in four has any bits at all: NaN and infinities. The others have numbers of both signs and 13 magnitudes,
// zeros and subnormals, so that sums tell wrong orders apart.
void fill(char* memory, DType dtype, std::int64_t count, std::uint64_t seed);

// The first element that differs, or -1. The sign and payload of a NaN are not part of the contract.
std::int64_t first_difference(DType dtype, const char* a, const char* b, std::int64_t count);

// A cell, for messages.
std::string name_of(DType dtype, unsigned terms, unsigned outputs);

}  // namespace fastreg::test
