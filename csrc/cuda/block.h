// The device memory of a call: its places, and which of them the device holds already.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "../norms.h"
#include "../penalty.h"
#include "errors.h"
#include "staging.h"
#include "table.h"

namespace fastreg::cuda {

inline void* device_memory(int device, std::size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes),
        "allocating " + std::to_string(bytes) + " bytes on device " + std::to_string(device));
  return memory;
}

// The place of no penalty's outputs.
constexpr unsigned output_norms = 16;

// What a clip has found out, in device memory: nothing waits for it.
struct ClipState {
  double norm;
  double factor;
  int exponent;   // not 0: squares are to be those of the elements times 2^exponent
  int is_finite;  // whether all elements are
};

// Where things lie in a block: first the counter, then what is sent, then what kernels write.
struct Places {
  static constexpr std::size_t alignment = 256;
  static constexpr std::size_t strengths = alignment;  // the counter is at 0

  std::size_t rows, first_chunks, groups, large_rows, strided_rows, axes, sent_end;
  std::size_t l1_sums, l2_sums, l1_group_sums, l2_group_sums, values, total_sums;
  std::size_t chunk_zeros, group_zeros, zeros;  // of proximal steps; the first two of norms as well
  std::size_t maxima, group_maxima, group_nonfinite, norms, state, end;  // of norms

  // `outputs` of a penalty, or output_norms.
  Places(const Table& table, std::size_t strength_count, unsigned outputs) {
    const bool measures = outputs == output_norms;
    const bool wants_value = measures || (outputs & output_value) != 0;
    const bool counts = measures || (wants_value && is_prox(outputs));
    std::size_t next = strengths;
    const auto place = [&](std::size_t& offset, std::size_t count, std::size_t size) {
      offset = next;
      next = (next + count * size + alignment - 1) / alignment * alignment;
    };
    std::size_t first = 0;
    place(first, strength_count, sizeof(Coefficients));
    place(rows, table.rows.size(), sizeof(Row));
    place(first_chunks, table.first_chunks.size(), sizeof(std::int64_t));
    place(groups, table.groups.size(), sizeof(SumGroup));
    place(large_rows, table.large_rows.size(), sizeof(LargeRow));
    place(strided_rows, table.strided_rows.size(), sizeof(StridedRow));
    place(axes, table.axes.size(), sizeof(Axis));
    sent_end = next;
    const std::size_t chunks = wants_value ? static_cast<std::size_t>(table.chunks()) : 0;
    place(l1_sums, chunks, sizeof(double));
    place(l2_sums, chunks, sizeof(double));
    place(l1_group_sums, table.groups.size(), sizeof(double));
    place(l2_group_sums, table.groups.size(), sizeof(double));
    place(values, wants_value ? table.rows.size() : 0, sizeof(double));
    place(total_sums, static_cast<std::size_t>(chunk_count(static_cast<std::int64_t>(table.rows.size()))),
          sizeof(double));
    place(chunk_zeros, counts ? chunks : 0, sizeof(std::int32_t));
    place(group_zeros, counts ? table.groups.size() : 0, sizeof(double));
    place(zeros, counts ? table.rows.size() : 0, sizeof(std::int64_t));
    place(maxima, measures ? chunks : 0, sizeof(double));
    place(group_maxima, measures ? table.groups.size() : 0, sizeof(double));
    place(group_nonfinite, measures ? table.groups.size() : 0, sizeof(double));
    place(norms, measures ? table.rows.size() : 0, sizeof(Norm));
    place(state, measures ? 1 : 0, sizeof(ClipState));
    end = next;
  }
};

// The first `sent_end` bytes of a block; those before `Places::strengths` are not sent.
inline std::vector<char> make_image(const Table& table, const Places& places, const Coefficients* strengths,
                                    std::size_t strength_count) {
  std::vector<char> image(places.sent_end, 0);
  const auto put = [&](std::size_t place, const auto* from, std::size_t count) {
    if (count != 0) {
      std::memcpy(image.data() + place, from, count * sizeof *from);
    }
  };
  put(Places::strengths, strengths, strength_count);
  put(places.rows, table.rows.data(), table.rows.size());
  put(places.first_chunks, table.first_chunks.data(), table.first_chunks.size());
  put(places.groups, table.groups.data(), table.groups.size());
  put(places.large_rows, table.large_rows.data(), table.large_rows.size());
  put(places.strided_rows, table.strided_rows.data(), table.strided_rows.size());
  put(places.axes, table.axes.data(), table.axes.size());
  return image;
}

// A block of device memory, and what it holds, or will hold when its stream comes to it.
class Block {
 public:
  explicit Block(int device) : device_(device) {}
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() {
    cudaFree(memory_);
    for (void* memory : outgrown_) {
      cudaFree(memory);
    }
  }

  char* memory() const { return memory_; }

  void reserve(std::size_t bytes, cudaStream_t stream) {
    if (bytes <= capacity_) {
      return;
    }
    const std::size_t capacity = std::max(bytes, 2 * capacity_);
    outgrown_.reserve(outgrown_.size() + 1);
    auto* memory = static_cast<char*>(device_memory(device_, capacity));
    const cudaError_t error = cudaMemsetAsync(memory, 0, Places::alignment, stream);  // the counter
    if (error != cudaSuccess) {
      cudaFree(memory);
      check(error, "clearing memory");
    }
    if (memory_ != nullptr) {
      outgrown_.push_back(memory_);
    }
    memory_ = memory;
    capacity_ = capacity;
    held_.clear();
  }

  void hold(std::vector<char> image, std::size_t strengths_end, cudaStream_t stream) {
    const bool same_size = image.size() == held_.size();
    const auto same = [&](std::size_t begin, std::size_t end) {
      return same_size && std::memcmp(image.data() + begin, held_.data() + begin, end - begin) == 0;
    };
    const bool same_strengths = same(Places::strengths, strengths_end);
    const bool same_table = same(strengths_end, image.size());
    if (same_strengths && same_table) {
      return;
    }
    held_.clear();  // should sending fail
    staging_.send(image.data(), same_strengths ? strengths_end : Places::strengths,
                  same_table ? strengths_end : image.size(), memory_, stream);
    held_ = std::move(image);
  }

  // Changes a part of what is held, and sends that: `write` gets where it begins.
  template <class Write>
  void change(std::size_t begin, std::size_t end, Write write, cudaStream_t stream) {
    write(held_.data() + begin);
    staging_.send(held_.data(), begin, end, memory_, stream);
  }

 private:
  int device_;
  char* memory_ = nullptr;
  std::size_t capacity_ = 0;
  std::vector<void*> outgrown_;
  std::vector<char> held_;
  Staging staging_;
};

}  // namespace fastreg::cuda
