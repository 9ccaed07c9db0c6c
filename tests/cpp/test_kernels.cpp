// Every cell of every variant of every table that this processor can run, against the oracle: dtype x terms x outputs,
// plain and with streaming stores, at sizes where something ends, at every alignment that may come, over special
// numbers.
#include <algorithm>
#include <cmath>
#include <string>

#include "arrays.h"
#include "canonical_sum.h"
#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/floors.h"
#include "cpu/policy.h"

namespace fastreg::test {
namespace {

constexpr double factor_l1 = 0.3;
constexpr double factor_l2 = 1.4;
constexpr double untouched = -12345.0;

// The kernels of one variant in one instruction set's table.
struct Table {
  std::string name;
  const Cells* cells;
};

std::vector<Table> usable_tables() {
  std::vector<Table> tables;
  for (const std::string& name : usable_instruction_sets()) {
    choose_instruction_set(name, "the test");
    for (std::size_t i = 0; i < variant_count; ++i) {
      tables.push_back({text(name, name_of(static_cast<Variant>(i))), &kernels().cells[i]});
    }
  }
  return tables;
}

// One cell and its input, with what must come out.
struct Case {
  DType dtype;
  unsigned terms;
  unsigned outputs;
  std::size_t count;
  std::vector<unsigned char> weights;
  std::vector<unsigned char> old_gradients;
  std::vector<unsigned char> expected_gradients;
  std::vector<unsigned char> expected_in_place;  // the gradient of weights that it is written upon
  std::vector<double> expected_l1;
  std::vector<double> expected_l2;

  bool has(unsigned output) const { return (outputs & output) != 0; }
  std::size_t bytes() const { return count * item_size(dtype); }
};

std::vector<unsigned char> gradients_of(const Case& cell, const std::vector<unsigned char>& old) {
  std::vector<unsigned char> gradients = old;
  for (std::size_t i = 0; i < cell.bytes(); i += item_size(cell.dtype)) {
    oracle::gradient(cell.dtype, cell.weights.data() + i, gradients.data() + i, (cell.terms & term_l1) != 0,
                     (cell.terms & term_l2) != 0, factor_l1, factor_l2, cell.has(output_add));
  }
  return gradients;
}

Case make_case(DType dtype, unsigned terms, unsigned outputs, std::size_t count, Fill kind) {
  Case cell{dtype, terms, outputs, count, {}, {}, {}, {}, {}, {}};
  cell.weights.resize(cell.bytes());
  cell.old_gradients.resize(cell.bytes());
  fill(cell.weights.data(), dtype, count, kind, count);
  fill(cell.old_gradients.data(), dtype, count, kind, count + 1);
  const std::size_t chunks = (count + 4095) / 4096;
  cell.expected_l1.assign(chunks, untouched);
  cell.expected_l2.assign(chunks, untouched);
  if (cell.has(output_value)) {
    const std::vector<double> elements = elements_of(cell.weights.data(), dtype, count);
    if ((terms & term_l1) != 0) {
      cell.expected_l1 = oracle::chunk_sums(oracle::magnitudes(elements));
    }
    if ((terms & term_l2) != 0) {
      cell.expected_l2 = oracle::chunk_sums(oracle::squares(elements));
    }
  }
  if (cell.has(output_gradient)) {
    cell.expected_gradients = gradients_of(cell, cell.old_gradients);
    cell.expected_in_place = gradients_of(cell, cell.weights);
  }
  return cell;
}

void check_sums(const Case& cell, const std::vector<double>& l1, const std::vector<double>& l2,
                const std::string& what) {
  CHECK(first_difference(l1.data(), cell.expected_l1.data(), DType::f64, l1.size()) == l1.size(), what, "l1 sums");
  CHECK(first_difference(l2.data(), cell.expected_l2.data(), DType::f64, l2.size()) == l2.size(), what, "l2 sums");
}

enum class Place { apart, in_place };

void run_case(const Case& cell, Kernel kernel, std::size_t weight_offset, std::size_t gradient_offset, Place place,
              const std::string& what) {
  Bytes weights(cell.bytes(), weight_offset);
  std::copy(cell.weights.begin(), cell.weights.end(), weights.data());
  Bytes gradients(cell.has(output_gradient) ? cell.bytes() : 0, gradient_offset);
  if (cell.has(output_gradient)) {
    std::copy(cell.old_gradients.begin(), cell.old_gradients.end(), gradients.data());
  }
  std::vector<double> l1(cell.expected_l1.size(), untouched);
  std::vector<double> l2(cell.expected_l2.size(), untouched);
  unsigned char* target = place == Place::in_place ? weights.data() : gradients.data();
  kernel({weights.data(), cell.has(output_gradient) ? target : nullptr, static_cast<std::int64_t>(cell.count),
          factor_l1, factor_l2, l1.data(), l2.data()});
  check_sums(cell, l1, l2, what);
  CHECK(weights.untouched() && gradients.untouched(), what, "wrote beside an array");
  if (cell.has(output_gradient)) {
    const auto& expected = place == Place::in_place ? cell.expected_in_place : cell.expected_gradients;
    const std::size_t at = first_difference(target, expected.data(), cell.dtype, cell.count);
    CHECK(at == cell.count, what, "gradient at", at);
  }
  if (place == Place::apart) {
    CHECK(std::equal(cell.weights.begin(), cell.weights.end(), weights.data()), what, "weights were written");
  }
}

void run_cell(const Case& cell, const Cells& cells, const std::string& what) {
  const auto dtype = static_cast<std::size_t>(cell.dtype);
  const Kernel plain = cells.kernels[dtype][cell.terms - 1][cell.outputs];
  const Kernel streaming = cells.streaming_kernels[dtype][cell.terms - 1][cell.outputs];
  const std::size_t item = item_size(cell.dtype);
  CHECK(plain != nullptr, what);
  if (plain == nullptr) {
    return;
  }
  run_case(cell, plain, 0, 0, Place::apart, what);
  run_case(cell, plain, item, 16, Place::apart, what + " unaligned");
  run_case(cell, plain, 0, item, Place::apart, what + " an element into a line");
  if (cell.has(output_gradient)) {
    run_case(cell, plain, 16, 0, Place::in_place, what + " in place");
    run_case(cell, plain, item, 0, Place::in_place, what + " in place, an element into a line");
  }
  if (cell.count < 10'000) {
    run_case(cell, plain, 1, 3, Place::apart, what + " at any byte");
  }
  const bool may_stream = cell.has(output_gradient) && !cell.has(output_add);
  CHECK((streaming != nullptr) == may_stream, what, "streaming");
  if (streaming != nullptr) {
    for (const std::size_t offset : {0U, 16U, 32U, 48U}) {
      run_case(cell, streaming, 0, offset, Place::apart, text(what, "streaming at", offset));
    }
    run_case(cell, streaming, item, 16, Place::apart, what + " streaming unaligned");
  }
}

void run_all(std::initializer_list<std::size_t> counts, Fill kind) {
  const std::vector<Table> tables = usable_tables();
  for (const DType dtype : floating_dtypes) {
    for (const std::size_t count : counts) {
      for (const unsigned terms : {1u, 2u, 3u}) {
        for (unsigned outputs = 0; outputs < output_masks; ++outputs) {
          if (outputs == 0 || outputs == output_add || outputs == (output_value | output_add)) {
            for (const Table& table : tables) {
              CHECK(table.cells->kernels[static_cast<int>(dtype)][terms - 1][outputs] == nullptr, table.name, outputs);
            }
            continue;
          }
          const Case cell = make_case(dtype, terms, outputs, count, kind);
          for (const Table& table : tables) {
            run_cell(cell, *table.cells,
                     text(table.name, name_of(dtype), "terms", terms, "outputs", outputs, "count", count,
                          kind == Fill::special ? "specials" : ""));
          }
        }
      }
    }
  }
}

// ---- rounding: f(c, w) = round(c * w), for any float c and all half-precision w

// Runs L2, or L1, alone over `weights`: the gradient of halves is c * w, or c * sign(w), rounded once to float32 and
// once to the half.
void check_rounding(const std::vector<Table>& tables, DType dtype, unsigned terms, unsigned outputs,
                    const std::vector<std::uint16_t>& weights, const std::vector<std::uint16_t>& old, double factor) {
  const std::size_t count = weights.size();
  std::vector<std::uint16_t> expected = old;
  for (std::size_t i = 0; i < count; ++i) {
    oracle::gradient(dtype, &weights[i], &expected[i], terms == term_l1, terms == term_l2, factor, factor,
                     (outputs & output_add) != 0);
  }
  for (const Table& table : tables) {
    std::vector<std::uint16_t> gradients = old;
    table.cells->kernels[static_cast<int>(dtype)][terms - 1][outputs](
        {weights.data(), gradients.data(), static_cast<std::int64_t>(count), factor, factor, nullptr, nullptr});
    const std::size_t at = first_difference(gradients.data(), expected.data(), dtype, count);
    CHECK(at == count, table.name, name_of(dtype), "factor", factor, "weight bits", weights[std::min(at, count - 1)]);
  }
}

std::vector<std::uint16_t> all_patterns() {
  std::vector<std::uint16_t> patterns(0x10000);
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    patterns[i] = static_cast<std::uint16_t>(i);
  }
  return patterns;
}

}  // namespace

TEST(kernels_around_rows_and_blocks) {
  run_all({1, 31, 32, 33, 1023, 1024, 1025}, Fill::ordinary);
  run_all({1, 31, 32, 33, 1023, 1024, 1025}, Fill::special);
}

TEST(kernels_around_chunks) {
  run_all({4095, 4096, 4097}, Fill::ordinary);
  run_all({4097}, Fill::special);
}

TEST(kernels_over_many_chunks) { run_all({100'003}, Fill::ordinary); }

// All half-precision numbers survive the way to float32 and back, are squared and summed rightly, and are rounded
// rightly after a multiplication: by powers of two down to subnormals and up to overflow, by factors whose products are
// ties, and by arbitrary ones.
TEST(half_precision_of_all_patterns) {
  const std::vector<Table> tables = usable_tables();
  const std::vector<std::uint16_t> weights = all_patterns();
  for (const DType dtype : {DType::f16, DType::bf16}) {
    const int fraction_bits = dtype == DType::f16 ? 10 : 7;
    std::vector<double> factors = {1.0,
                                   -1.0,
                                   3.0,
                                   1.0 + std::ldexp(1.0, -fraction_bits - 1),
                                   1.0 + std::ldexp(1.0, -fraction_bits),
                                   0x1p-126,
                                   0x1p-149,
                                   0x1.fffffep127};
    for (int exponent = -30; exponent <= 16; exponent += 2) {
      factors.push_back(std::ldexp(1.0, exponent));
      factors.push_back(std::ldexp(1.5, exponent));
    }
    Random random(7);
    for (int i = 0; i < 16; ++i) {
      factors.push_back(random.number());
    }
    for (const double factor : factors) {
      check_rounding(tables, dtype, term_l2, output_gradient, weights, weights, factor);
    }
    // Sums of two halves: the old gradients are the same patterns in another order.
    for (const std::size_t shift : {1u, 2u, 0x400u, 0x8000u, 0x8001u, 12345u}) {
      std::vector<std::uint16_t> old = weights;
      std::rotate(old.begin(), old.begin() + static_cast<std::ptrdiff_t>(shift), old.end());
      check_rounding(tables, dtype, term_l2, output_gradient | output_add, weights, old, 1.0);
      check_rounding(tables, dtype, term_l2, output_gradient | output_add, weights, old, 0.501);
      check_rounding(tables, dtype, term_l1, output_gradient | output_add, weights, old, 0.333);
    }
    for (const Table& table : tables) {
      std::vector<double> sums(32);  // with chunks of NaN among them
      table.cells->kernels[static_cast<int>(dtype)][2][output_value](
          {weights.data(), nullptr, 0x10000, 1.0, 1.0, sums.data(), sums.data() + 16});
      const std::vector<double> elements = elements_of(weights.data(), dtype, weights.size());
      const std::vector<double> l1 = oracle::chunk_sums(oracle::magnitudes(elements));
      const std::vector<double> l2 = oracle::chunk_sums(oracle::squares(elements));
      for (std::size_t i = 0; i < 16; ++i) {
        CHECK(oracle::same_value(sums[i], l1[i]), table.name, name_of(dtype), "l1 sum", i);
        CHECK(oracle::same_value(sums[16 + i], l2[i]), table.name, name_of(dtype), "l2 sum", i);
      }
    }
  }
}

// L1 of a weight of 1 is its factor, so that any float can be rounded: each tie between two halves, and the floats on
// both sides of it, up to the tie with infinity.
TEST(half_precision_ties) {
  const std::vector<Table> tables = usable_tables();
  for (const DType dtype : {DType::f16, DType::bf16}) {
    std::uint16_t one = 0;
    oracle::store(dtype, 1.0, &one);
    const std::vector<std::uint16_t> weights = {one, static_cast<std::uint16_t>(one | 0x8000u)};
    const unsigned infinity = dtype == DType::f16 ? 0x7c00 : 0x7f80;
    for (unsigned bits = 0; bits < infinity; bits += bits % 64 == 0 || bits + 64 > infinity ? 1 : 3) {
      const double low = oracle::widen(dtype, static_cast<std::uint16_t>(bits));
      const double high = bits + 1 == infinity ? 2 * low - oracle::widen(dtype, static_cast<std::uint16_t>(bits - 1))
                                               : oracle::widen(dtype, static_cast<std::uint16_t>(bits + 1));
      const auto tie = static_cast<float>(low + (high - low) / 2);
      for (const float factor : {std::nextafter(tie, 0.0f), tie, std::nextafter(tie, HUGE_VALF)}) {
        check_rounding(tables, dtype, term_l1, output_gradient, weights, weights, static_cast<double>(factor));
      }
    }
  }
}

// The floors are measured, not promised, but must touch every byte and no other.
TEST(floors) {
  for (const std::string& name : usable_instruction_sets()) {
    choose_instruction_set(name, "the test");
    const FloorLoops& loops = floor_loops();
    for (const std::size_t bytes : {0u, 8u, 256u, 264u, 4104u}) {
      Bytes source(bytes, 16);
      Bytes target(bytes, 0);
      fill(source.data(), DType::u64, bytes / 8, Fill::ordinary, bytes);
      std::uint64_t exclusive_or = 0;
      for (std::size_t i = 0; i + 8 <= bytes; i += 8) {
        std::uint64_t word;
        std::memcpy(&word, source.data() + i, 8);
        exclusive_or ^= word;
      }
      const std::uint64_t seen = loops.read(source.data(), bytes);
      // Whole words are folded; what is left over is folded by bytes. Only the presence of all bits is promised.
      CHECK(bytes % 256 != 0 || seen == exclusive_or, name, bytes);
      loops.copy(target.data(), source.data(), bytes);
      CHECK(std::equal(target.data(), target.data() + bytes, source.data()), name, bytes);
      CHECK(target.untouched(), name, bytes);

      fill(source.data(), DType::f32, bytes / 4, Fill::ordinary, 1);
      fill(target.data(), DType::f32, bytes / 4, Fill::ordinary, 2);
      const std::vector<double> a = elements_of(source.data(), DType::f32, bytes / 4);
      const std::vector<double> b = elements_of(target.data(), DType::f32, bytes / 4);
      loops.add_f32(target.data(), source.data(), bytes);
      for (std::size_t i = 0; i < a.size(); ++i) {
        const auto sum = static_cast<double>(static_cast<float>(a[i] + b[i]));
        CHECK(oracle::same_value(oracle::element(DType::f32, target.data() + 4 * i), sum), name, i);
      }
      CHECK(target.untouched(), name, bytes);
    }
  }
}

TEST(dispatch) {
  const std::vector<std::string> compiled = compiled_instruction_sets();
  const std::vector<std::string> usable = usable_instruction_sets();
  CHECK(usable.back() == "portable");
  for (const std::string& name : usable) {
    CHECK(std::find(compiled.begin(), compiled.end(), name) != compiled.end(), name);
    choose_instruction_set(name, "the test");
    CHECK(name == kernels().name, name);
  }
  for (const char* wrong : {"", "avx3", "AVX2"}) {
    std::string message;
    try {
      choose_instruction_set(wrong, "name");
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    CHECK(message.find("'portable'") != std::string::npos, wrong, message);
  }
}

}  // namespace fastreg::test
