// The loops of norms. Compiled like kernel.cpp, once per instruction set and with its flags, and all but the loops'
// table has internal linkage as well.
//
// Elements are taken in steps that stay in L1: maximum and zeros are found in the bits as they are stored, then the
// step is added up in float64, half precision widened before. Elements that are not finite are rare: a run that has any
// is counted once more.
#include "norm_loops.h"

#include <cstring>
#include <limits>

#include "fetch.h"
#include "lane_sums.h"
#include "vec.h"

namespace fastreg {
namespace {

// Signed integers of the size of an element, whose largest every instruction set finds fastest: magnitudes have no
// sign, and their bits are in the order of the numbers.
template <class E>
struct MagnitudeOf;
template <>
struct MagnitudeOf<F16> {
  using type = std::int16_t;
  static constexpr type infinity = 0x7c00;
};
template <>
struct MagnitudeOf<BF16> {
  using type = std::int16_t;
  static constexpr type infinity = 0x7f80;
};
template <>
struct MagnitudeOf<F32> {
  using type = std::int32_t;
  static constexpr type infinity = 0x7f800000;
};
template <>
struct MagnitudeOf<F64> {
  using type = std::int64_t;
  static constexpr type infinity = 0x7ff0000000000000;
};

template <Variant variant, class E>
struct Loops {
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  using Memory = Access<E>;
  using Magnitude = typename MagnitudeOf<E>::type;
  using Magnitudes = Vector<Magnitude>;
  static constexpr Magnitude all_but_the_sign = std::numeric_limits<Magnitude>::max();
  static constexpr bool converts = !Memory::is_compute_type;
  static constexpr int row_bytes = lanes_per_chunk * static_cast<int>(sizeof(Storage));
  // Of 1 to 32 those that take least in caches; from memory all take as long as a read.
  static constexpr int rows_per_step = converts && has_avx512 ? 16 : 4;

  // ---- maximum and zeros

  struct Scan {
    Magnitudes largest[2] = {};
    ZeroCount<Magnitude> zeros;
  };

  FASTREG_INLINE void scan_rows(const Storage* elements, int rows, Scan& scan) {
    constexpr int per_register = FASTREG_VECTOR_BYTES / static_cast<int>(sizeof(Storage));
    for (int row = 0; row < rows; ++row, elements += lanes_per_chunk) {
      fetch_ahead<variant, row_bytes>(elements);
      for (int k = 0; k < lanes_per_chunk / per_register; ++k) {
        const Magnitudes magnitudes = load_vector<Magnitudes>(elements + k * per_register) & all_but_the_sign;
        Magnitudes& largest = scan.largest[k % 2];
        largest = magnitudes > largest ? magnitudes : largest;
        scan.zeros.add(magnitudes);
      }
    }
  }

  static void keep_scan(const Scan& scan, const Storage* elements, std::int64_t count, NormLanes& lanes) {
    const Magnitudes largest = scan.largest[0] > scan.largest[1] ? scan.largest[0] : scan.largest[1];
    Magnitude most = 0;
    for (std::size_t k = 0; k < sizeof largest / sizeof most; ++k) {
      most = largest[k] > most ? largest[k] : most;
    }
    double wide;
    widen(&most, 1, &wide);
    std::uint64_t bits;
    std::memcpy(&bits, &wide, sizeof bits);
    lanes.maximum = bits > lanes.maximum ? bits : lanes.maximum;
    lanes.zeros += scan.zeros.total();
    if (most >= MagnitudeOf<E>::infinity) {
      for (std::int64_t i = 0; i < count; ++i) {
        Magnitude one;
        std::memcpy(&one, elements + i, sizeof one);
        lanes.nonfinite += (one & all_but_the_sign) >= MagnitudeOf<E>::infinity ? 1 : 0;
      }
    }
  }

  // ---- sums

  // Zen 4 works 64-byte registers in halves, and widens into them at less than half the speed.
  static constexpr bool sums_in_halves = variant == Variant::cached && has_avx512 && sizeof(Real) == sizeof(float);
  using Sums = LaneSums<FASTREG_VECTOR_BYTES / (sums_in_halves ? 2 : 1)>;

  FASTREG_INLINE void sum_rows(const Storage* elements, int rows, Sums& sums) {
    constexpr unsigned both = term_l1 | term_l2;
    if constexpr (converts) {
      alignas(line_bytes) Real magnitudes[rows_per_step * lanes_per_chunk];
      for (int k = 0; k < rows * lanes_per_chunk; k += real_lanes<Real>) {
        store_vector(magnitudes + k, absolute<Real>(Memory::load(elements + k)));
      }
      add_rows<both, false, true>(magnitudes, rows, sums);
    } else {
      add_rows<both, sizeof(Storage) == sizeof(double), false>(elements, rows, sums);
    }
  }

  // ---- a run

  static void add(const void* address, std::int64_t count, NormLanes& lanes) {
    const Storage* elements = static_cast<const Storage*>(address);
    Scan scan;
    Sums sums(lanes.l1, lanes.l2);
    std::int64_t done = 0;
    for (; done + rows_per_step * lanes_per_chunk <= count; done += rows_per_step * lanes_per_chunk) {
      scan_rows(elements + done, rows_per_step, scan);
      sum_rows(elements + done, rows_per_step, sums);
    }
    for (; done + lanes_per_chunk <= count; done += lanes_per_chunk) {
      scan_rows(elements + done, 1, scan);
      sum_rows(elements + done, 1, sums);
    }
    if (done < count) {
      // A short row is padded with +0, which changes no bit of a lane, and is then not counted.
      alignas(line_bytes) Storage padded[lanes_per_chunk] = {};
      std::memcpy(padded, elements + done, static_cast<std::size_t>(count - done) * sizeof(Storage));
      scan_rows(padded, 1, scan);
      sum_rows(padded, 1, sums);
      lanes.zeros -= lanes_per_chunk - (count - done);
    }
    sums.store(lanes.l1, lanes.l2);
    keep_scan(scan, elements, count, lanes);
  }

  // ---- scaling

  static constexpr int elements_per_store = Memory::registers_per_store * real_lanes<Real>;
  static constexpr int elements_per_line = line_bytes / static_cast<int>(sizeof(Storage));

  FASTREG_INLINE void scale_one(Storage* elements, Vector<Real> factor) {
    Vector<Real> products[Memory::registers_per_store];
    for (int k = 0; k < Memory::registers_per_store; ++k) {
      products[k] = Memory::load(elements + k * real_lanes<Real>) * factor;
    }
    store_vector(elements, Memory::narrow(products));
  }

  FASTREG_INLINE void scale_few(Storage* elements, std::int64_t count, Vector<Real> factor) {
    alignas(line_bytes) Storage padded[elements_per_line] = {};
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(Storage);
    std::memcpy(padded, elements, bytes);
    for (int k = 0; k < elements_per_line; k += elements_per_store) {
      scale_one(padded + k, factor);
    }
    std::memcpy(elements, padded, bytes);
  }

  static void scale(void* address, std::int64_t count, double factor) {
    Storage* elements = static_cast<Storage*>(address);
    const Vector<Real> factors = broadcast(static_cast<Real>(factor));
    std::int64_t done = 0;
    for (; done + elements_per_line <= count; done += elements_per_line) {
      fetch_ahead<variant, line_bytes>(elements + done);
      for (int k = 0; k < elements_per_line; k += elements_per_store) {
        scale_one(elements + done + k, factors);
      }
    }
    if (done < count) {
      scale_few(elements + done, count - done, factors);
    }
  }

  // ---- conversion

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

template <Variant variant>
constexpr NormLoops make_loops() {
  return {
      {Loops<variant, F16>::add, Loops<variant, BF16>::add, Loops<variant, F32>::add, Loops<variant, F64>::add},
      {Loops<variant, F16>::scale, Loops<variant, BF16>::scale, Loops<variant, F32>::scale, Loops<variant, F64>::scale},
      {Loops<variant, F16>::widen, Loops<variant, BF16>::widen, Loops<variant, F32>::widen, Loops<variant, F64>::widen},
  };
}

}  // namespace

namespace FASTREG_ISA {
constexpr NormLoops norm_loops[variant_count] = {
    make_loops<kernels_of(Variant::plain)>(), make_loops<kernels_of(Variant::near)>(),
    make_loops<kernels_of(Variant::far)>(), make_loops<kernels_of(Variant::cached)>(),
    make_loops<kernels_of(Variant::cached)>()};
}

}  // namespace fastreg
