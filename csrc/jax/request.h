// What a call from XLA asks for, read from its frame: the values of penalties, for one tensor or many, once or for each
// element of a batch.
//
// - Operands: the weights of n tensors; then for each rule its two strengths, scaled already. The strengths are two
//   floating numbers, or the bits of two float64 as uint32[2, 2], for programs that have no float64.
// - Attributes: `which`, integers, for each tensor the index of its rule; for CUDA also `constants`, float64, two
//   strengths for each rule, NaN where they are known on the device alone.
// - Results: `values`, one number per tensor, and `total`, their canonical sum.
// - Under vmap every operand and result gets leading axes, one per level; an operand that is not mapped has extent 1
//   there.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../dtype.h"
#include "xla_ffi_abi.h"

namespace fastreg::xla {

// What a frame holds that it should not.
struct BadRequest : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// The leading axes that all operands and results have under vmap.
struct BatchAxes {
  const std::int64_t* extents;
  std::int64_t count;
};

// An operand, of which a part belongs to each element of the batch.
class Batched {
 public:
  Batched(const Buffer& buffer, BatchAxes axes);

  std::int64_t count() const { return count_; }
  const Buffer& buffer() const { return *buffer_; }
  // How many elements lie before those of an element of the batch.
  std::int64_t offset(std::int64_t element) const;

 private:
  const Buffer* buffer_;
  BatchAxes axes_;
  std::int64_t count_ = 1;
};

struct Request {
  explicit Request(const CallFrame& frame);

  DType dtype_of(std::size_t tensor) const;
  const void* weights_of(std::size_t tensor, std::int64_t element) const;

  std::int64_t batch = 1;
  std::vector<Batched> weights;
  std::vector<Batched> strengths;
  std::vector<std::uint32_t> which;
  std::vector<double> constants;
  const Buffer* values;
  const Buffer* total;
};

// The two strengths that lie at `data` in the form of an operand of this type; and the bytes that they take.
std::pair<double, double> decode_strengths(DataType dtype, const void* data);
std::size_t strengths_size(DataType dtype);

}  // namespace fastreg::xla
