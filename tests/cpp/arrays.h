// Memory for the tests: arrays at a chosen distance from a cache line, with guards, and numbers to fill them with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "oracle.h"

namespace fastreg::test {

constexpr DType floating_dtypes[] = {DType::f16, DType::bf16, DType::f32, DType::f64};

// Pseudo-random numbers: the same everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2862933555777941757u + 3037000493u) {}
  std::uint64_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ ^ (state_ >> 29)) >> 8 ^ state_ << 31;
  }
  int below(int limit) { return static_cast<int>(next() % static_cast<std::uint64_t>(limit)); }
  // Both signs, magnitudes from 2^-12 to 2^4.
  double number() {
    const double fraction = static_cast<double>(next() >> 11) * 0x1p-53;
    return (2.0 * fraction - 1.0) * static_cast<double>(1 << below(17)) * 0x1p-12;
  }

 private:
  std::uint64_t state_;
};

// `bytes` bytes that start `offset` bytes after a cache line's start. The sanitizer sees any access past them; without
// it, untouched() sees what was written beside them.
class Bytes {
 public:
  Bytes(std::size_t bytes, std::size_t offset) : bytes_(bytes), offset_(offset) {
    memory_.reset(
        static_cast<unsigned char*>(::operator new(offset + bytes + guard_bytes, std::align_val_t{alignment})));
    std::memset(memory_.get(), guard, offset + bytes + guard_bytes);
  }
  unsigned char* data() { return memory_.get() + offset_; }
  const unsigned char* data() const { return memory_.get() + offset_; }
  std::size_t size() const { return bytes_; }
  bool untouched() const {
    for (std::size_t i = 0; i < offset_; ++i) {
      if (memory_[i] != guard) {
        return false;
      }
    }
    for (std::size_t i = offset_ + bytes_; i < offset_ + bytes_ + guard_bytes; ++i) {
      if (memory_[i] != guard) {
        return false;
      }
    }
    return true;
  }

 private:
  static constexpr std::size_t alignment = 64;
  static constexpr unsigned char guard = 0xa5;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t guard_bytes = 0;
#else
  static constexpr std::size_t guard_bytes = 128;
#endif
  struct Free {
    void operator()(unsigned char* memory) const { ::operator delete(memory, std::align_val_t{alignment}); }
  };
  std::size_t bytes_;
  std::size_t offset_;
  std::unique_ptr<unsigned char[], Free> memory_;
};

// What a test array holds: numbers as weights are, or everything that makes trouble.
enum class Fill { ordinary, special };

// Random bits in integers; in floating types numbers, zeros of both signs and subnormals, or any bits and every kind of
// special number.
[[maybe_unused]] static void fill(void* memory, DType dtype, std::size_t count, Fill kind, std::uint64_t seed) {
  Random random(seed);
  auto* bytes = static_cast<unsigned char*>(memory);
  const std::size_t size = item_size(dtype);
  for (std::size_t i = 0; i < count; ++i, bytes += size) {
    const std::uint64_t bits = random.next();
    if (dtype == DType::boolean) {
      *bytes = static_cast<unsigned char>(bits & 1);
    } else if (!is_floating(dtype) || (kind == Fill::special && bits % 4 != 0)) {
      const std::uint64_t pattern = random.next();
      std::memcpy(bytes, &pattern, size);
    } else {
      const double infinity = std::numeric_limits<double>::infinity();
      const double specials[] = {0.0, -0.0, infinity, -infinity, std::numeric_limits<double>::quiet_NaN(), 1.0, -1.0};
      const auto choice = (bits >> 8) % 64;
      if (choice < (kind == Fill::special ? std::size(specials) : 2)) {
        oracle::store(dtype, specials[choice], bytes);
      } else if (choice < 9) {  // subnormals: the lowest bits only
        const std::uint64_t low = bits >> 16 & 0x3f;
        std::memcpy(bytes, &low, size);
      } else {
        oracle::store(dtype, random.number(), bytes);
      }
    }
  }
}

[[maybe_unused]] static std::vector<double> elements_of(const void* memory, DType dtype, std::size_t count) {
  std::vector<double> elements;
  elements.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    elements.push_back(oracle::element(dtype, static_cast<const unsigned char*>(memory) + i * item_size(dtype)));
  }
  return elements;
}

// The first index at which two arrays differ, or `count`.
[[maybe_unused]] static std::size_t first_difference(const void* a, const void* b, DType dtype, std::size_t count) {
  const std::size_t size = item_size(dtype);
  if (count == 0 || std::memcmp(a, b, count * size) == 0) {
    return count;
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (!oracle::same_element(dtype, static_cast<const unsigned char*>(a) + i * size,
                              static_cast<const unsigned char*>(b) + i * size)) {
      return i;
    }
  }
  return count;
}

}  // namespace fastreg::test
