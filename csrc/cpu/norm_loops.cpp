// The loops of norms. Compiled like kernel.cpp, once per instruction set and with its flags, and all but the loops'
// table has internal linkage as well.
//
// Elements are taken in blocks that stay in L1: half precision is widened first, then a pass over the compute type
// finds maximum and zeros, and another one adds up in float64. Elements that are not finite are rare: a block that has
// any is counted once more.
#include "norm_loops.h"

#include <cstring>

#include "vec.h"

namespace fastreg {
namespace {

constexpr int block_size = 1024;
constexpr int line_bytes = 64;
constexpr int registers_per_group = 4;  // as in kernel.cpp
constexpr int group_lanes = registers_per_group * wide_lanes;
constexpr int groups = lanes_per_chunk / group_lanes;
static_assert(lanes_per_chunk % group_lanes == 0 && block_size % lanes_per_chunk == 0);

// Of signed integers, whose largest every instruction set finds fastest; magnitudes have no sign.
template <class Real>
struct MagnitudeOf;
template <>
struct MagnitudeOf<float> {
  using type = std::int32_t;
  static constexpr type infinity = 0x7f800000;
};
template <>
struct MagnitudeOf<double> {
  using type = std::int64_t;
  static constexpr type infinity = 0x7ff0000000000000;
};

// Into L1 and, further ahead, into L2: what kernel.cpp's variant "far" does. As an integer: the place may lie past the
// array's end, where a pointer must not be formed.
template <int bytes>
FASTREG_INLINE void fetch_ahead(const void* address) {
  const auto here = reinterpret_cast<std::uintptr_t>(address);
  for (int line = 0; line < bytes; line += line_bytes) {
    __builtin_prefetch(reinterpret_cast<const void*>(here + static_cast<std::uintptr_t>(line) + 4096));
    __builtin_prefetch(reinterpret_cast<const void*>(here + static_cast<std::uintptr_t>(line) + 8192), 0, 2);
  }
}

template <class E>
struct Loops {
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  using Memory = Access<E>;
  using Magnitude = typename MagnitudeOf<Real>::type;
  using Magnitudes = Vector<Magnitude>;
  static constexpr bool converts = !Memory::is_compute_type;
  static constexpr int row_bytes = lanes_per_chunk * static_cast<int>(sizeof(Storage));

  FASTREG_INLINE void convert(const Storage* elements, int count, Real* numbers) {
    for (int i = 0; i < count; i += lanes_per_chunk) {
      fetch_ahead<row_bytes>(elements + i);
      for (int k = i; k < i + lanes_per_chunk; k += real_lanes<Real>) {
        store_vector(numbers + k, Memory::load(elements + k));
      }
    }
  }

  FASTREG_INLINE void scan(const Real* numbers, int count, NormLanes& lanes) {
    Magnitudes largest[2] = {};
    Magnitudes zeros[2] = {};
    for (int i = 0; i < count; i += lanes_per_chunk) {
      if constexpr (!converts) {
        fetch_ahead<row_bytes>(numbers + i);
      }
      for (int k = 0; k < lanes_per_chunk; k += real_lanes<Real>) {
        const int one = k / real_lanes<Real> % 2;
        const auto magnitudes = bit_cast<Magnitudes>(absolute<Real>(load_vector<Vector<Real>>(numbers + i + k)));
        largest[one] = magnitudes > largest[one] ? magnitudes : largest[one];
        zeros[one] -= bit_cast<Magnitudes>(magnitudes == 0);  // a lane that is equal is -1
      }
    }
    const Magnitudes all = largest[0] > largest[1] ? largest[0] : largest[1];
    Magnitude most = 0;
    for (int k = 0; k < real_lanes<Real>; ++k) {
      most = all[k] > most ? all[k] : most;
      lanes.zeros += zeros[0][k] + zeros[1][k];
    }
    Real number;
    std::memcpy(&number, &most, sizeof number);
    const double wide = number;
    std::uint64_t bits;
    std::memcpy(&bits, &wide, sizeof bits);
    lanes.maximum = bits > lanes.maximum ? bits : lanes.maximum;
    if (most >= MagnitudeOf<Real>::infinity) {
      count_nonfinite(numbers, count, lanes);
    }
  }

  static void count_nonfinite(const Real* numbers, int count, NormLanes& lanes) {
    for (int i = 0; i < count; ++i) {
      typename BitsOf<Real>::type bits;
      std::memcpy(&bits, numbers + i, sizeof bits);
      lanes.nonfinite += static_cast<Magnitude>(bits & ~BitsOf<Real>::sign) >= MagnitudeOf<Real>::infinity ? 1 : 0;
    }
  }

  FASTREG_INLINE void sum(const Real* numbers, int count, NormLanes& lanes) {
    for (int group = 0; group < groups; ++group) {
      double* l1_lanes = lanes.l1 + group * group_lanes;
      double* l2_lanes = lanes.l2 + group * group_lanes;
      Wide l1[registers_per_group];
      Wide l2[registers_per_group];
      for (int k = 0; k < registers_per_group; ++k) {
        l1[k] = load_wide<Wide>(l1_lanes + k * wide_lanes);
        l2[k] = load_wide<Wide>(l2_lanes + k * wide_lanes);
      }
      for (int i = group * group_lanes; i < count; i += lanes_per_chunk) {
        for (int k = 0; k < registers_per_group; ++k) {
          const Wide x = load_wide<Wide>(numbers + i + k * wide_lanes);
          l1[k] += absolute<double>(x);
          // Only the square of a float64 is rounded before it is added, and must not be fused.
          l2[k] = sizeof(Storage) == sizeof(double) ? l2[k] + x * x : add_exact_product<double>(x, x, l2[k]);
        }
      }
      for (int k = 0; k < registers_per_group; ++k) {
        store_vector(l1_lanes + k * wide_lanes, l1[k]);
        store_vector(l2_lanes + k * wide_lanes, l2[k]);
      }
    }
  }

  FASTREG_INLINE void add_block(const Storage* elements, int count, NormLanes& lanes) {
    if constexpr (converts) {
      alignas(line_bytes) Real numbers[block_size];
      convert(elements, count, numbers);
      scan(numbers, count, lanes);
      sum(numbers, count, lanes);
    } else {
      scan(elements, count, lanes);
      sum(elements, count, lanes);
    }
  }

  static void add(const void* address, std::int64_t left, NormLanes& lanes) {
    const Storage* elements = static_cast<const Storage*>(address);
    while (left >= lanes_per_chunk) {
      const int rows = static_cast<int>((left < block_size ? left : block_size) / lanes_per_chunk);
      add_block(elements, rows * lanes_per_chunk, lanes);
      elements += rows * lanes_per_chunk;
      left -= rows * lanes_per_chunk;
    }
    if (left != 0) {
      // A short row is padded with +0, which changes no bit of a lane, and is then not counted.
      alignas(line_bytes) Storage padded[lanes_per_chunk] = {};
      std::memcpy(padded, elements, static_cast<std::size_t>(left) * sizeof(Storage));
      add_block(padded, lanes_per_chunk, lanes);
      lanes.zeros -= lanes_per_chunk - left;
    }
  }

  static constexpr int elements_per_store = Memory::registers_per_store * real_lanes<Real>;

  FASTREG_INLINE void scale_one(Storage* elements, Vector<Real> factor) {
    Vector<Real> products[Memory::registers_per_store];
    for (int k = 0; k < Memory::registers_per_store; ++k) {
      products[k] = Memory::load(elements + k * real_lanes<Real>) * factor;
    }
    store_vector(elements, Memory::narrow(products));
  }

  static void scale(void* address, std::int64_t count, double factor) {
    Storage* elements = static_cast<Storage*>(address);
    const Vector<Real> factors = broadcast(static_cast<Real>(factor));
    std::int64_t i = 0;
    for (; i + elements_per_store <= count; i += elements_per_store) {
      if (i % (line_bytes / static_cast<int>(sizeof(Storage))) == 0) {
        fetch_ahead<line_bytes>(elements + i);
      }
      scale_one(elements + i, factors);
    }
    if (i < count) {
      alignas(line_bytes) Storage padded[elements_per_store] = {};
      const std::size_t bytes = static_cast<std::size_t>(count - i) * sizeof(Storage);
      std::memcpy(padded, elements + i, bytes);
      scale_one(padded, factors);
      std::memcpy(elements + i, padded, bytes);
    }
  }

  static void widen(const void* address, std::int64_t count, double* to) {
    const Storage* elements = static_cast<const Storage*>(address);
    for (std::int64_t i = 0; i < count; i += real_lanes<Real>) {
      const std::int64_t some = count - i < real_lanes<Real> ? count - i : real_lanes<Real>;
      Storage padded[real_lanes<Real>] = {};
      std::memcpy(padded, elements + i, static_cast<std::size_t>(some) * sizeof(Storage));
      const Vector<Real> numbers = Memory::load(padded);
      for (std::int64_t k = 0; k < some; ++k) {
        to[i + k] = static_cast<double>(numbers[k]);
      }
    }
  }
};

}  // namespace

namespace FASTREG_ISA {
constexpr NormLoops norm_loops = {
    {Loops<F16>::add, Loops<BF16>::add, Loops<F32>::add, Loops<F64>::add},
    {Loops<F16>::scale, Loops<BF16>::scale, Loops<F32>::scale, Loops<F64>::scale},
    {Loops<F16>::widen, Loops<BF16>::widen, Loops<F32>::widen, Loops<F64>::widen},
};
}

}  // namespace fastreg
