// Native-width vectors: what the kernel needs of an instruction set. The only file with intrinsics.
//
// FASTREG_VECTOR_BYTES says how wide: 16 (portable, NEON), 32 (AVX2), 64 (AVX-512). Everything has a form in GNU vector
// extensions that is right at any width; intrinsics stand beside it only where compilers do badly (conversions to and
// from half precision, streaming stores) or where the extension has no word for it (fused multiply-add).
// Vectors wider than a register are 2 to 15 times slower with GCC 12 and are for tests only.
//
// Included by files that are compiled per instruction set: every function is static, nothing of the standard library's
// templates is used, so that the linker has nothing to merge across instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#include "../dtype.h"
#include "../prox.inl"

#if defined(__AVX512F__) && FASTREG_VECTOR_BYTES == 64
#define FASTREG_VEC_AVX512 1
#elif defined(__AVX2__) && FASTREG_VECTOR_BYTES == 32
#define FASTREG_VEC_AVX2 1
#elif defined(__aarch64__) && FASTREG_VECTOR_BYTES == 16
#define FASTREG_VEC_NEON 1
#elif defined(__SSE2__) && FASTREG_VECTOR_BYTES == 16
#define FASTREG_VEC_SSE2 1
#endif

#if defined(__x86_64__) || defined(__i386__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own "undefined" registers when these are inlined.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fastreg {
namespace {

#if defined(FASTREG_VEC_AVX512)
constexpr bool has_avx512 = true;  // and 32 registers
#else
constexpr bool has_avx512 = false;
#endif
#if defined(FASTREG_VEC_AVX512) || defined(FASTREG_VEC_AVX2) || defined(FASTREG_VEC_NEON)
constexpr bool has_fused_product = true;
#else
constexpr bool has_fused_product = false;
#endif

template <class T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};

// D float64 lanes or R elements of a compute type fill one register.
constexpr int wide_lanes = FASTREG_VECTOR_BYTES / static_cast<int>(sizeof(double));
template <class Real>
constexpr int real_lanes = FASTREG_VECTOR_BYTES / static_cast<int>(sizeof(Real));

template <class Real>
using Vector = typename VectorOf<Real, FASTREG_VECTOR_BYTES>::type;
using Wide = Vector<double>;

template <class Real>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = std::uint32_t;
  static constexpr type sign = 0x80000000u;
};
template <>
struct BitsOf<double> {
  using type = std::uint64_t;
  static constexpr type sign = 0x8000000000000000u;
};

template <class Real>
using Bits = Vector<typename BitsOf<Real>::type>;

// Unaligned, and without the aliasing rules: arrays may start at any byte.
template <class V>
FASTREG_INLINE V load_vector(const void* address) {
  V v;
  std::memcpy(&v, address, sizeof v);
  return v;
}

template <class V>
FASTREG_INLINE void store_vector(void* address, V v) {
  std::memcpy(address, &v, sizeof v);
}

template <class To, class From>
FASTREG_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class Real>
FASTREG_INLINE Vector<Real> broadcast(Real x) {
  return x - Vector<Real>{};  // x - (+0) is x for every x, -0 included
}

template <class Real, class V>
FASTREG_INLINE V absolute(V x) {
  using Words = typename VectorOf<typename BitsOf<Real>::type, sizeof(V)>::type;
  return bit_cast<V>(bit_cast<Words>(x) & ~BitsOf<Real>::sign);
}

// a * b + c, rounded once; only where has_fused_product.
template <class Real, class V>
FASTREG_INLINE V fused([[maybe_unused]] V a, [[maybe_unused]] V b, [[maybe_unused]] V c) {
  [[maybe_unused]] constexpr bool single = sizeof(Real) == sizeof(float);
#if defined(FASTREG_VEC_AVX512)
  if constexpr (single) {
    return _mm512_fmadd_ps(a, b, c);
  } else if constexpr (sizeof(V) == 32) {
    return _mm256_fmadd_pd(a, b, c);
  } else {
    return _mm512_fmadd_pd(a, b, c);
  }
#elif defined(FASTREG_VEC_AVX2)
  if constexpr (single) {
    return _mm256_fmadd_ps(a, b, c);
  } else {
    return _mm256_fmadd_pd(a, b, c);
  }
#elif defined(FASTREG_VEC_NEON)
  if constexpr (single) {
    return vfmaq_f32(c, a, b);
  } else {
    return vfmaq_f64(c, a, b);
  }
#else
  static_assert(sizeof(V) == 0, "this processor rounds twice");
#endif
}

// The same, and twice where the processor cannot. Only for products that are exact: there the bits are the same.
template <class Real, class V>
FASTREG_INLINE V add_exact_product(V a, V b, V c) {
  if constexpr (has_fused_product) {
    return fused<Real>(a, b, c);
  } else {
    return a * b + c;
  }
}

// A register whose origin the compiler does not know. Else GCC takes a number that is used twice from memory twice, and
// turns a multiplication by one into nothing.
template <class V>
FASTREG_INLINE V opaque(V v) {
#if defined(FASTREG_VEC_AVX512)
  asm("" : "+v"(v));
#elif defined(FASTREG_VEC_AVX2) || defined(FASTREG_VEC_SSE2)
  asm("" : "+x"(v));
#elif defined(FASTREG_VEC_NEON)
  asm("" : "+w"(v));
#endif
  return v;
}

// Counts the zeros in registers of signed integers, or of numbers of their size. A lane's counter has the integers'
// size: at most 32767 registers.
//
// NOLINTBEGIN(readability-redundant-inline-specifier): GCC asks for it beside the attribute, in templates.
template <class Integer>
class ZeroCount {
 public:
  using Integers = Vector<Integer>;

#if defined(FASTREG_VEC_AVX512)
  // General registers count while the others add.
  inline __attribute__((always_inline)) void add(Integers integers) {
    const __m512i bits = bit_cast<__m512i>(integers);
    if constexpr (sizeof(Integer) == 2) {
      count_ += __builtin_popcount(_mm512_testn_epi16_mask(bits, bits));
    } else if constexpr (sizeof(Integer) == 4) {
      count_ += __builtin_popcount(_mm512_testn_epi32_mask(bits, bits));
    } else {
      count_ += __builtin_popcount(_mm512_testn_epi64_mask(bits, bits));
    }
  }
  template <class Number>
  inline __attribute__((always_inline)) void add_number(Number x) {
    if constexpr (sizeof(Integer) == sizeof(float)) {
      count_ += __builtin_popcount(_mm512_cmp_ps_mask(x, Number{}, _CMP_EQ_OQ));
    } else {
      count_ += __builtin_popcount(_mm512_cmp_pd_mask(x, Number{}, _CMP_EQ_OQ));
    }
  }
  std::int64_t total() const { return count_; }

 private:
  std::int64_t count_ = 0;
#else
  inline __attribute__((always_inline)) void add(Integers integers) { counts_ -= integers == 0; }  // true is -1
  template <class Number>
  inline __attribute__((always_inline)) void add_number(Number x) {
    counts_ -= bit_cast<Integers>(x == Number{});
  }
  std::int64_t total() const {
    std::int64_t all = 0;
    for (std::size_t k = 0; k < sizeof counts_ / sizeof(Integer); ++k) {
      all += counts_[k];
    }
    return all;
  }

 private:
  Integers counts_ = {};
#endif
};
// NOLINTEND(readability-redundant-inline-specifier)

// What penalty.inl, prox.inl and step.inl ask for.
template <class Scalar>
struct VectorOps {
  using Real = Vector<Scalar>;

  FASTREG_INLINE Real sign(Real x) {
#if defined(FASTREG_VEC_AVX512)
    // One instruction looks the answer up by the class of the number; from the highest digit of the table: positive 1,
    // negative -1, +inf 1, -inf -1, one 1, zero +0, and NaN quiet.
    constexpr int table = static_cast<int>(0xa9a9a822);
    if constexpr (sizeof(Scalar) == sizeof(float)) {
      return _mm512_fixupimm_ps(x, x, _mm512_set1_epi32(table), 0);
    } else {
      return _mm512_fixupimm_pd(x, x, _mm512_set1_epi64(table), 0);
    }
#else
    // One comparison serves zeros and NaN: where |x| > 0 fails, |x| is the answer, +0 or that NaN. A branch, or a
    // ternary on the three cases of the sign, can keep a compiler from vectorising and cost a factor of six.
    const Real magnitude = absolute<Scalar>(x);
    const Bits<Scalar> sign_bit = bit_cast<Bits<Scalar>>(x) & BitsOf<Scalar>::sign;
    const Real one = bit_cast<Real>(bit_cast<Bits<Scalar>>(broadcast<Scalar>(1)) | sign_bit);
    return magnitude > Real{} ? one : magnitude;
#endif
  }
  FASTREG_INLINE Real add_exact(Real sign, Real factor, Real addend) {
    return add_exact_product<Scalar>(sign, factor, addend);
  }
  FASTREG_INLINE Real shrink(Real x, Real threshold) {
    const Real left = absolute<Scalar>(x) - threshold;
#if defined(FASTREG_VEC_AVX512)
    constexpr int with_sign_of = 0xf8;  // left | (x & sign)
    if constexpr (sizeof(Scalar) == sizeof(float)) {
      const __mmask16 stays = _mm512_cmp_ps_mask(left, Real{}, _CMP_NLE_UQ);  // NaN too
      return bit_cast<Real>(_mm512_maskz_ternarylogic_epi32(stays, bit_cast<__m512i>(left), bit_cast<__m512i>(x),
                                                            _mm512_set1_epi32(INT32_MIN), with_sign_of));
    } else {
      const __mmask8 stays = _mm512_cmp_pd_mask(left, Real{}, _CMP_NLE_UQ);
      return bit_cast<Real>(_mm512_maskz_ternarylogic_epi64(stays, bit_cast<__m512i>(left), bit_cast<__m512i>(x),
                                                            _mm512_set1_epi64(INT64_MIN), with_sign_of));
    }
#else
    const Bits<Scalar> sign_bit = bit_cast<Bits<Scalar>>(x) & BitsOf<Scalar>::sign;
    const Bits<Scalar> is_gone = bit_cast<Bits<Scalar>>(left <= Real{});  // not where it is NaN
    return bit_cast<Real>((bit_cast<Bits<Scalar>>(left) | sign_bit) & ~is_gone);
#endif
  }
  // A division takes the processor as long as ten products. Of one by a known number the quotient is its reciprocal's
  // product, corrected by what that leaves over (Brisebarre, Muller and Raina, IEEE Transactions on Computers 53,
  // 2004): exact as long as nothing is lost below the smallest number, and a root is at least 2^-75, or 0.
  FASTREG_INLINE Real root_quotient(Real x, Real divisor, Real reciprocal) {
    const Real root = sqrt(x);
    if constexpr (has_fused_product) {
      const Real quotient = root * reciprocal;
      const Real left = fused<Scalar>(-quotient, divisor, root);
      return left == left ? fused<Scalar>(left, reciprocal, quotient) : quotient;  // infinity leaves NaN
    } else {
      return root / divisor;
    }
  }

 private:
  FASTREG_INLINE Real sqrt(Real x) {
    [[maybe_unused]] constexpr bool single = sizeof(Scalar) == sizeof(float);
#if defined(FASTREG_VEC_AVX512)
    if constexpr (single) {
      return _mm512_sqrt_ps(x);
    } else {
      return _mm512_sqrt_pd(x);
    }
#elif defined(FASTREG_VEC_AVX2)
    if constexpr (single) {
      return _mm256_sqrt_ps(x);
    } else {
      return _mm256_sqrt_pd(x);
    }
#elif defined(FASTREG_VEC_SSE2)
    if constexpr (single) {
      return _mm_sqrt_ps(x);
    } else {
      return _mm_sqrt_pd(x);
    }
#elif defined(FASTREG_VEC_NEON)
    if constexpr (single) {
      return vsqrtq_f32(x);
    } else {
      return vsqrtq_f64(x);
    }
#else
    Real roots;
    for (int k = 0; k < real_lanes<Scalar>; ++k) {
      roots[k] = single ? __builtin_sqrtf(static_cast<float>(x[k])) : static_cast<Scalar>(__builtin_sqrt(x[k]));
    }
    return roots;
#endif
  }
};

// ---- half precision in software, one register of floats at a time: what the conversion instructions do, but for the
// payloads of NaN

struct SoftwareHalf {
  using Floats = Vector<float>;
  using Words = Vector<std::uint32_t>;
  using Halves = typename VectorOf<std::uint16_t, FASTREG_VECTOR_BYTES / 2>::type;

  FASTREG_INLINE Words zero_extend(Halves h) {
#if defined(FASTREG_VEC_AVX512)
    return bit_cast<Words>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(h)));
#elif defined(FASTREG_VEC_AVX2)
    return bit_cast<Words>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(h)));
#else
    return __builtin_convertvector(h, Words);
#endif
  }

  FASTREG_INLINE Floats from_f16(Halves h) {
    const Words words = zero_extend(h);
    const Words magnitude = (words & 0x7fffu) << 13;
    // The exponent is rebiased by a multiplication, which is exact and normalises subnormals on the way.
    const Words scaled = bit_cast<Words>(bit_cast<Floats>(magnitude) * 0x1p112f);
    const Words special = bit_cast<Words>(magnitude >= 0x0f800000u) & 0x7f800000u;  // inf and NaN
    return bit_cast<Floats>(scaled | special | ((words & 0x8000u) << 16));
  }

  FASTREG_INLINE Halves to_f16(Floats f) {
    const Words bits = bit_cast<Words>(f);
    const Words magnitude = bits & 0x7fffffffu;
    // Normal results: to nearest even in integers, then the exponent rebiased; a carry may reach infinity, rightly.
    const Words normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    // Subnormal results: one ulp of 0.5f is the f16 subnormals' spacing, so the addition itself rounds to nearest even.
    const Words subnormal = bit_cast<Words>(bit_cast<Floats>(magnitude) + 0.5f) - 0x3f000000u;
    const Words is_subnormal = bit_cast<Words>(magnitude < 0x38800000u);
    const Words is_infinite = bit_cast<Words>(magnitude >= 0x477ff000u);  // 65520 and above
    const Words is_nan = bit_cast<Words>(magnitude > 0x7f800000u);
    Words half = (is_subnormal & subnormal) | (~is_subnormal & normal);
    half = (is_infinite & 0x7c00u) | (~is_infinite & half);
    half |= is_nan & 0x0200u;
    return __builtin_convertvector(half | ((bits >> 16) & 0x8000u), Halves);
  }

  FASTREG_INLINE Floats from_bf16(Halves h) { return bit_cast<Floats>(zero_extend(h) << 16); }

  // To nearest even, in the upper half of each word. NaN needs no care, because every NaN that comes here has a lower
  // half of zeros (a bfloat16's that was widened, or the one that the processor makes), so that nothing is carried.
  FASTREG_INLINE Words round_to_bf16(Floats f) {
    const Words bits = bit_cast<Words>(f);
    return bits + 0x7fffu + ((bits >> 16) & 1u);
  }
};

// ---- float64 lanes from the compute type, in memory: the conversion that reads memory is one operation where the one
// from a register is two, and a block of floats that was just written or read lies in L1.

template <class Sum>
FASTREG_INLINE Sum load_wide(const double* p) {
  return opaque(load_vector<Sum>(p));
}

template <class Sum>
FASTREG_INLINE Sum load_wide(const float* p) {
  using Floats [[maybe_unused]] = typename VectorOf<float, sizeof(Sum) / 2>::type;
#if defined(FASTREG_VEC_AVX512)
  if constexpr (sizeof(Sum) == 32) {
    return _mm256_cvtps_pd(load_vector<Floats>(p));
  } else {
    return _mm512_cvtps_pd(load_vector<Floats>(p));
  }
#elif defined(FASTREG_VEC_AVX2)
  return _mm256_cvtps_pd(load_vector<Floats>(p));
#elif defined(FASTREG_VEC_SSE2)
  // An 8-byte vector of floats lives in general registers with GCC; load it as a double and convert.
  // By memcpy: _mm_load_sd would claim that the address is a multiple of 8.
  double two;
  std::memcpy(&two, p, sizeof two);
  return _mm_cvtps_pd(_mm_castpd_ps(_mm_set_sd(two)));
#else
  return __builtin_convertvector(load_vector<Floats>(p), Sum);
#endif
}

// ---- the element types: a register of the compute type from memory, and what is stored at once: a register of it, or,
// of halves, the two that make up a full register

template <class E>
struct Access {
  using Real = typename E::Real;
  static constexpr bool is_compute_type = true;
  static constexpr bool comes_in_pairs = false;
  static constexpr int registers_per_store = 1;
  FASTREG_INLINE Vector<Real> load(const Real* p) { return load_vector<Vector<Real>>(p); }
  FASTREG_INLINE Vector<Real> narrow(const Vector<Real>* x) { return x[0]; }
};

using SixteenBits = Vector<std::uint16_t>;

// Two half registers side by side. Through memory it would cost a stall.
FASTREG_INLINE SixteenBits join(SoftwareHalf::Halves low, SoftwareHalf::Halves high) {
#if defined(FASTREG_VEC_AVX512)
  return bit_cast<SixteenBits>(
      _mm512_inserti64x4(_mm512_castsi256_si512(bit_cast<__m256i>(low)), bit_cast<__m256i>(high), 1));
#elif defined(FASTREG_VEC_AVX2)
  return bit_cast<SixteenBits>(
      _mm256_inserti128_si256(_mm256_castsi128_si256(bit_cast<__m128i>(low)), bit_cast<__m128i>(high), 1));
#else
  const SoftwareHalf::Halves both[2] = {low, high};
  return load_vector<SixteenBits>(both);
#endif
}

template <>
struct Access<F16> {
  static constexpr bool is_compute_type = false;
  static constexpr bool comes_in_pairs = false;
  static constexpr int registers_per_store = 2;
  using Halves = SoftwareHalf::Halves;
  template <class Floats = Vector<float>>
  FASTREG_INLINE Floats load(const std::uint16_t* p) {
    const Halves h [[maybe_unused]] = load_vector<Halves>(p);
#if defined(FASTREG_VEC_AVX512)
    if constexpr (sizeof(Floats) == 32) {
      return _mm256_cvtph_ps(load_vector<__m128i>(p));
    } else {
      return _mm512_cvtph_ps(bit_cast<__m256i>(h));
    }
#elif defined(FASTREG_VEC_AVX2)
    return _mm256_cvtph_ps(bit_cast<__m128i>(h));
#elif defined(FASTREG_VEC_NEON)
    return vcvt_f32_f16(bit_cast<float16x4_t>(h));
#else
    return SoftwareHalf::from_f16(h);
#endif
  }
  FASTREG_INLINE SixteenBits narrow(const Vector<float>* x) { return join(narrow_one(x[0]), narrow_one(x[1])); }

 private:
  FASTREG_INLINE Halves narrow_one(Vector<float> x) {
#if defined(FASTREG_VEC_AVX512)
    return bit_cast<Halves>(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(FASTREG_VEC_AVX2)
    return bit_cast<Halves>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(FASTREG_VEC_NEON)
    return bit_cast<Halves>(vcvt_f16_f32(x));
#else
    return SoftwareHalf::to_f16(x);
#endif
  }
};

template <>
struct Access<BF16> {
  static constexpr bool is_compute_type = false;
  static constexpr bool comes_in_pairs = true;  // see load_magnitudes
  static constexpr int registers_per_store = 2;
  using Halves = SoftwareHalf::Halves;
  // Of every two neighbours: three operations for two registers, where widening one by one takes three for each.
  template <class Floats>
  FASTREG_INLINE void load_magnitudes(const std::uint16_t* p, Floats& even, Floats& odd) {
    using Words = typename VectorOf<std::uint32_t, sizeof(Floats)>::type;
    const Words pairs = opaque(load_vector<Words>(p));
    even = bit_cast<Floats>((pairs << 16) & 0x7fff0000u);
    odd = bit_cast<Floats>(pairs & 0x7fff0000u);
  }
  FASTREG_INLINE Vector<float> load(const std::uint16_t* p) {
#if defined(FASTREG_VEC_AVX512)
    // Every word to the upper half of its own float, zeros below: one instruction where widening and shifting are two.
    alignas(64) static constexpr std::uint16_t upper[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                            0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
    const __m512i words = _mm512_castsi256_si512(load_vector<__m256i>(p));
    return bit_cast<Vector<float>>(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, load_vector<__m512i>(upper), words));
#else
    return SoftwareHalf::from_bf16(load_vector<Halves>(p));
#endif
  }
  FASTREG_INLINE SixteenBits narrow(const Vector<float>* x) {
    const auto a = SoftwareHalf::round_to_bf16(x[0]);
    const auto b = SoftwareHalf::round_to_bf16(x[1]);
#if defined(FASTREG_VEC_AVX512)
    // The odd 16-bit words of both.
    alignas(64) static constexpr std::uint16_t odd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                          23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                          45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return bit_cast<SixteenBits>(
        _mm512_permutex2var_epi16(bit_cast<__m512i>(a), load_vector<__m512i>(odd), bit_cast<__m512i>(b)));
#elif defined(FASTREG_VEC_AVX2)
    // Packing works within 128 bits, so the four quarters come out as a0 b0 a1 b1.
    const __m256i packed = _mm256_packus_epi32(bit_cast<__m256i>(a >> 16), bit_cast<__m256i>(b >> 16));
    return bit_cast<SixteenBits>(_mm256_permute4x64_epi64(packed, 0b11'01'10'00));
#else
    return join(__builtin_convertvector(a >> 16, Halves), __builtin_convertvector(b >> 16, Halves));
#endif
  }
};

// ---- stores that pass the caches by, for a gradient larger than they are. The address must be a multiple of the
// vector's size.

template <class V>
FASTREG_INLINE void stream_vector(void* address, V v) {
  static_assert(sizeof v == FASTREG_VECTOR_BYTES);
#if defined(FASTREG_VEC_AVX512)
  _mm512_stream_si512(static_cast<__m512i*>(address), bit_cast<__m512i>(v));
#elif defined(FASTREG_VEC_AVX2)
  _mm256_stream_si256(static_cast<__m256i*>(address), bit_cast<__m256i>(v));
#elif defined(FASTREG_VEC_SSE2)
  _mm_stream_si128(static_cast<__m128i*>(address), bit_cast<__m128i>(v));
#else
  store_vector(address, v);
#endif
}

// Streaming stores are weakly ordered: other threads may read the gradient once this has run.
FASTREG_INLINE void finish_streaming() {
#if defined(FASTREG_VEC_AVX512) || defined(FASTREG_VEC_AVX2) || defined(FASTREG_VEC_SSE2)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace fastreg
