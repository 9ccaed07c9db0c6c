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

// One tensor of a call: how many elements, how many elements after an allocation's start, which strengths.
struct Shape {
  DType dtype;
  std::int64_t count;
  int offset = 0;
  std::uint32_t strengths = 0;
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
  std::vector<double> step();
  bool device_is_untouched() const;

 private:
  std::vector<Item> items() const;

  std::vector<Shape> shapes_;
  std::vector<Coefficients> strengths_;
  unsigned outputs_;
  int device_;
  std::vector<DeviceItem> device_items_;
  std::vector<std::unique_ptr<Memory>> memory_;
  std::vector<std::vector<char>> weights_;    // the CPU's
  std::vector<std::vector<char>> gradients_;  // the CPU's; as they were until the first comparison
  Memory values_;
  Memory total_;
  bool in_place_;
};

// Strengths for the terms of a mask, of both signs and odd enough for every rounding to matter.
Coefficients strengths_for(unsigned terms, double scale = 1.0);

// Calls the backend, which must succeed.
void evaluate_on_device(const DeviceCall& call, const std::string& what, Recording** recording = nullptr);

}  // namespace fastreg::test
