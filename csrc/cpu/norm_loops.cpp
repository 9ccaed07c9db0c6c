// The loops of norms. Compiled like kernel.cpp, once per instruction set and with its flags, and all but the loops'
// table has internal linkage as well.
//
// Elements are taken in steps that stay in L1: maximum and zeros are found in the bits as they are stored, then the
// step is added up in float64, half precision widened before. Elements that are not finite are rare: a run that has any
// is counted once more.
#include "norm_loops.h"

#include <cstring>

#include "fetch.h"
#include "lane_sums.h"
#include "magnitudes.h"
#include "vec.h"

namespace fastreg {
namespace {

template <Variant variant, class E>
struct Loops {
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  using Memory = Access<E>;
  using Magnitude = typename MagnitudeOf<E>::type;
  static constexpr bool converts = !Memory::is_compute_type;
  static constexpr int row_bytes = lanes_per_chunk * static_cast<int>(sizeof(Storage));
  // Of 1 to 32 those that take least in caches; from memory all take as long as a read.
  static constexpr int rows_per_step = converts && has_avx512 ? 16 : 4;

  // ---- maximum and zeros

  struct Scan {
    LargestMagnitude<E> largest;
    ZeroCount<Magnitude> zeros;
  };

  FASTREG_INLINE void scan_rows(const Storage* elements, int rows, Scan& scan) {
    constexpr int per_register = LargestMagnitude<E>::per_register;
    for (int row = 0; row < rows; ++row, elements += lanes_per_chunk) {
      fetch_ahead<variant, row_bytes>(elements);
      for (int k = 0; k < lanes_per_chunk / per_register; ++k) {
        scan.zeros.add(scan.largest.add(elements + k * per_register, k));
      }
    }
  }

  static void keep_scan(const Scan& scan, const Storage* elements, std::int64_t count, NormLanes& lanes) {
    const Magnitude most = scan.largest.found();
    double wide;
    widen(&most, 1, &wide);
    lanes.add_maximum(wide);
    lanes.zeros += scan.zeros.total();
    if (!is_finite<E>(most)) {
      lanes.nonfinite += count_nonfinite<E>(elements, count);
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
    make_loops<kernels_of(Variant::plain)>(),  make_loops<kernels_of(Variant::near)>(),
    make_loops<kernels_of(Variant::far)>(),    make_loops<kernels_of(Variant::cached)>(),
    make_loops<kernels_of(Variant::cached)>(), make_loops<kernels_of(Variant::plain)>()};
}

}  // namespace fastreg
