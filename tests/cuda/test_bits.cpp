// The device code's bits are those of the CPU engine, in every cell.
#include <string>
#include <vector>

#include "support.h"

namespace fastreg::test {
namespace {

const std::vector<Coefficients> all_strengths = {strengths_for(0), strengths_for(term_l1), strengths_for(term_l2),
                                                 strengths_for(term_l1 | term_l2)};

// Each size by itself, for every dtype, terms and outputs. `step`: only every so many of the cells.
void each_size(const std::vector<std::int64_t>& sizes, int offset, int step) {
  int cell = 0;
  for (const DType dtype : floating_dtypes) {
    for (std::uint32_t terms = 0; terms <= 3; ++terms) {
      for (const unsigned outputs : output_cells) {
        for (const std::int64_t size : sizes) {
          if (++cell % step != 0) {
            continue;
          }
          stand_in::reset(static_cast<std::uint64_t>(cell));
          stand_in::set_processors(1 + cell % 3, 1);
          Problem problem({{dtype, size, offset, terms}}, all_strengths, outputs, static_cast<std::uint64_t>(cell));
          run(problem, name_of(dtype, terms, outputs) + " size " + std::to_string(size));
        }
      }
    }
  }
}

// Tensors of all dtypes and terms in one call.
std::vector<Shape> mixed(int count, std::int64_t longest) {
  std::vector<Shape> shapes;
  for (int i = 0; i < count; ++i) {
    const std::int64_t size = (std::int64_t{7919} * i * i + 13 * i) % (longest + 1);
    shapes.push_back({floating_dtypes[i * 7 % 4], size, i % 3, static_cast<std::uint32_t>(i * 5 % 7 % 4)});
  }
  return shapes;
}

}  // namespace

TEST(bits_of_small_sizes) { each_size({0, 1, 31, 32, 33}, 0, 1); }
TEST(bits_around_a_chunk) { each_size({4095, 4096, 4097}, 0, 1); }
TEST(bits_of_many_chunks) { each_size({100003}, 0, 1); }
TEST(bits_of_unaligned_tensors) { each_size({33, 4097, 8192}, 1, 1); }

TEST(bits_of_seven_tensors) {
  for (const unsigned outputs : output_cells) {
    stand_in::reset(outputs);
    Problem problem(mixed(7, 9000), all_strengths, outputs, outputs);
    run(problem, "7 tensors, outputs " + std::to_string(outputs));
  }
}

TEST(bits_of_3000_tensors) {
  for (const unsigned outputs : output_cells) {
    stand_in::reset(outputs);
    Problem problem(mixed(3000, 300), all_strengths, outputs, outputs);
    run(problem, "3000 tensors, outputs " + std::to_string(outputs));
  }
}

// More rows of a dtype than find_row sees at once, and few enough for a sanitizer.
TEST(bits_of_300_tensors) {
  stand_in::reset(1);
  Problem problem(mixed(300, 300), all_strengths, 7, 1);
  run(problem, "300 tensors");
}

TEST(bits_in_place) {
  for (const DType dtype : floating_dtypes) {
    for (const unsigned outputs : {2u, 3u, 6u, 7u}) {
      stand_in::reset(outputs);
      Problem problem({{dtype, 5000, 0, 3}, {dtype, 8192, 1, 1}}, all_strengths, outputs, outputs, 0, true);
      run(problem, "in place, " + name_of(dtype, 3, outputs));
    }
  }
}

// More than 4096 chunks: a second level of the canonical sum.
TEST(bits_of_two_levels) {
  stand_in::reset(1);
  Problem problem({{DType::f16, std::int64_t{4096} * 4096 + 70000, 0, 3}, {DType::f16, 5, 0, 1}}, all_strengths, 1, 3);
  run(problem, "two levels");
}

// More than 2048 chunks, which is what a block adds up at once.
TEST(bits_of_two_tiles) {
  stand_in::reset(1);
  Problem problem({{DType::f16, std::int64_t{2148} * 4096, 0, 1}}, all_strengths, 1, 3);
  run(problem, "two tiles");
}

// Any number of blocks gives the same, and any order of threads.
TEST(bits_whatever_the_grid) {
  for (const int processors : {1, 2, 5}) {
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      stand_in::reset(seed);
      stand_in::set_processors(processors, 1);
      Problem problem(mixed(7, 30000), all_strengths, 7, 11);
      run(problem, std::to_string(processors) + " processors, seed " + std::to_string(seed));
    }
  }
}

// What a sanitizer that takes a millisecond per thread can do.
TEST(bits_tiny) {
  for (const unsigned outputs : {1u, 7u}) {
    stand_in::reset(outputs);
    stand_in::set_processors(1, 2);
    Problem problem(
        {{DType::f32, 9000, 0, 3}, {DType::f64, 40, 0, 2}, {DType::bf16, 4100, 1, 1}, {DType::f32, 0, 0, 3}},
        all_strengths, outputs, outputs);
    run(problem, "tiny, outputs " + std::to_string(outputs));
  }
}

// ---- proximal steps

const std::vector<Coefficients> all_thresholds = {thresholds_for(0), thresholds_for(term_l1), thresholds_for(term_l2),
                                                  thresholds_for(term_l1 | term_l2)};

// Each size by itself, for every dtype and terms: with the value and without, elsewhere and in place.
void each_step(const std::vector<std::int64_t>& sizes, int offset) {
  int cell = 0;
  for (const DType dtype : floating_dtypes) {
    for (std::uint32_t terms = 0; terms <= 3; ++terms) {
      for (const std::int64_t size : sizes) {
        for (const unsigned outputs : prox_cells) {
          for (const bool in_place : {false, true}) {
            ++cell;
            stand_in::reset(static_cast<std::uint64_t>(cell));
            stand_in::set_processors(1 + cell % 3, 1);
            Problem problem({{dtype, size, offset, terms}}, all_thresholds, outputs, static_cast<std::uint64_t>(cell),
                            0, in_place);
            run(problem, "step, " + name_of(dtype, terms, outputs) + " size " + std::to_string(size) +
                             (in_place ? ", in place," : ","));
          }
        }
      }
    }
  }
}

TEST(steps_of_small_sizes) { each_step({0, 1, 31, 32, 33}, 0); }
TEST(steps_around_a_chunk) { each_step({4095, 4096, 4097}, 0); }
TEST(steps_of_unaligned_tensors) { each_step({33, 8192, 20003}, 1); }

TEST(steps_of_many_tensors) {
  for (const unsigned outputs : prox_cells) {
    for (const int count : {7, 300}) {
      stand_in::reset(outputs);
      Problem problem(mixed(count, count == 7 ? 9000 : 300), all_thresholds, outputs, outputs, 0, true);
      run(problem, "step, many tensors");
    }
  }
}

TEST(steps_of_two_levels) {
  stand_in::reset(1);
  Problem problem({{DType::f16, std::int64_t{4096} * 4096 + 70000, 0, 3}, {DType::f16, 5, 0, 1}}, all_thresholds, 11, 3,
                  0, true);
  run(problem, "step, two levels");
}

TEST(steps_tiny) {
  stand_in::reset(1);
  stand_in::set_processors(1, 2);
  Problem problem({{DType::f32, 9000, 0, 3},
                   {DType::f64, 40, 0, 2},
                   {DType::bf16, 4100, 1, 1},
                   {DType::f32, 0, 0, 3},
                   {DType::f16, 70, 0, 0}},
                  all_thresholds, 11, 11, 0, true);
  run(problem, "step, tiny");
}

}  // namespace fastreg::test
