// Sizes beyond 2^32: the table's arithmetic, and the device code at the end of arrays of which only the end exists.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/strided.cuh"
#include "support.h"

namespace fastreg::test {
namespace {

// Addresses without memory behind them, but for the pages that are touched.
template <class T>
class Sparse {
 public:
  explicit Sparse(std::int64_t count) : bytes_(static_cast<std::size_t>(count) * sizeof(T)) {
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory_ != MAP_FAILED, bytes_, "bytes of addresses cannot be had");
  }
  ~Sparse() { munmap(memory_, bytes_); }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  T* data() const { return static_cast<T*>(memory_); }

 private:
  std::size_t bytes_;
  void* memory_;
};

template <class Work>
void run_chunks(const Work& work, void (*kernel)(Work)) {
  const cudaError_t error =
      cuda::launch_kernel(kernel, 2u, static_cast<unsigned>(cuda::threads_per_block), nullptr, work);
  CHECK(error == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess, stand_in::refusal());
}

Layout layout_of(const std::vector<Layout::Axis>& axes) {
  Layout layout{};
  layout.axis_count = static_cast<int>(axes.size());
  std::copy(axes.begin(), axes.end(), layout.axes);
  return layout;
}

// An axis as the table has it.
cuda::Axis axis_of(std::int64_t extent) {
  const Layout layout = layout_of({{extent, 8, 8}});
  cuda::Table table;
  cuda::add_strided_row(table, {nullptr, nullptr, extent, 0, DType::f32, &layout});
  return table.axes[0];
}

// Chunks from `begin` to `end` of a strided tensor.
template <class E, unsigned outputs>
void run_strided(const DeviceItem& item, const Coefficients& strengths, std::int64_t begin, std::int64_t end,
                 double* l1_sums, double* l2_sums) {
  cuda::Table table;
  cuda::add_strided_row(table, item);
  const cuda::Row row{item.weights, item.gradients, item.count, 0, 0, 0};
  const std::int64_t first_chunks[] = {0, chunk_count(item.count)};
  const cuda::Launch launch{table.strided_rows[0].dtype, true, 0, 1, begin, end};
  run_chunks<cuda::StridedWork>(
      {{&row, first_chunks, &strengths, launch, l1_sums, l2_sums}, table.strided_rows.data(), table.axes.data()},
      cuda::strided_chunks<E, outputs>);
}

}  // namespace

TEST(tables_of_huge_tensors) {
  const std::int64_t huge = (std::int64_t{1} << 46) + 4097;
  const std::vector<DeviceItem> items = {{nullptr, nullptr, 10, 0, DType::f64, nullptr},
                                         {nullptr, nullptr, huge, 0, DType::f16, nullptr},
                                         {nullptr, nullptr, huge, 0, DType::f16, nullptr},
                                         {nullptr, nullptr, 0, 0, DType::f32, nullptr}};
  const cuda::Table table = cuda::make_table(items.data(), items.size(), true);
  const std::int64_t chunks = (std::int64_t{1} << 34) + 2;
  CHECK(table.chunks() == 2 * chunks + 1, table.chunks());
  CHECK(table.rows[0].item == 1 && table.rows[1].item == 2 && table.rows[2].item == 3 && table.rows[3].item == 0,
        "order");
  CHECK(table.rows[1].first_chunk == chunks && table.rows[3].first_chunk == 2 * chunks, "first chunks");
  CHECK(table.launches.size() == 2, table.launches.size());
  CHECK(table.launches[0].chunk_end == 2 * chunks && table.launches[1].chunk_end == 2 * chunks + 1, "launches");
  const std::int64_t groups = (std::int64_t{1} << 22) + 1;
  CHECK(table.groups.size() == static_cast<std::size_t>(2 * groups + 2), table.groups.size());
  const cuda::SumGroup& last = table.groups[static_cast<std::size_t>(groups) - 1];
  CHECK(last.first_sum == std::int64_t{1} << 34 && last.count == 2 && last.is_all == 0, last.first_sum, last.count);
  CHECK(table.large_rows.size() == 2 && table.large_rows[1].first_group == groups, "large rows");
}

// The last chunks of a tensor of 2^32 + 5000 elements.
TEST(chunks_beyond_4g_elements) {
  stand_in::reset(1);
  const std::int64_t count = (std::int64_t{1} << 32) + 5000;
  const std::int64_t first = (std::int64_t{1} << 32) - 4096;  // three chunks are worked
  const Sparse<float> weights(count);
  const Sparse<float> gradients(count);
  const Sparse<double> l1_sums(chunk_count(count));
  const Sparse<double> l2_sums(chunk_count(count));
  std::vector<float> host_weights(static_cast<std::size_t>(count - first));
  std::vector<float> host_gradients(host_weights.size());
  for (std::size_t i = 0; i < host_weights.size(); ++i) {
    weights.data()[first + static_cast<std::int64_t>(i)] = host_weights[i] = static_cast<float>(i) * 0.37f - 700.0f;
    gradients.data()[first + static_cast<std::int64_t>(i)] = host_gradients[i] = static_cast<float>(i % 17);
  }
  const Coefficients strengths = strengths_for(3);
  const std::int64_t chunks = chunk_count(count);
  const cuda::Row row{weights.data(), gradients.data(), count, 0, 0, 0};
  const std::int64_t first_chunks[] = {0, chunks};
  run_chunks<cuda::ChunkWork>({&row,
                               first_chunks,
                               &strengths,
                               {DType::f32, false, 0, 1, first / chunk_size, chunks},
                               l1_sums.data(),
                               l2_sums.data()},
                              cuda::penalty_chunks<F32, 7>);
  double value = 0.0;
  const Item item{host_weights.data(), host_gradients.data(), count - first, strengths, nullptr, DType::f32};
  evaluate(&item, 1, 7, &value);
  CHECK(std::memcmp(gradients.data() + first, host_gradients.data(), host_gradients.size() * sizeof(float)) == 0,
        "gradients beyond 2^32");
  const double device_value =
      penalty_value(strengths, canonical_sum_in_place(l1_sums.data() + first / chunk_size, chunks - first / chunk_size),
                    canonical_sum_in_place(l2_sums.data() + first / chunk_size, chunks - first / chunk_size));
  CHECK(device_value == value, device_value, "is not", value);
}

// The values of many rows of several groups, from the sums of their groups: of few, and of more than a level holds.
TEST(values_of_large_rows) {
  stand_in::reset(1);
  std::vector<cuda::Row> rows;
  std::vector<cuda::LargeRow> large_rows;
  std::vector<double> l1_sums;
  std::vector<double> wanted;
  const Coefficients strengths[] = {strengths_for(term_l1), strengths_for(term_l1 | term_l2), strengths_for(term_l2)};
  std::uint64_t number = 1;
  for (const std::int64_t groups : {2, 3, 31, 33, 128, 129, 4095, 4096, 4097, 9000, 2, 2}) {
    const auto row = static_cast<std::int64_t>(rows.size());
    rows.push_back({nullptr, nullptr, 0, 0, row, row % 3});
    large_rows.push_back({row, static_cast<std::int64_t>(l1_sums.size()), groups});
    std::vector<double> l1;
    std::vector<double> l2;
    for (std::int64_t i = 0; i < groups; ++i) {
      number = number * 6364136223846793005u + 1442695040888963407u;
      l1.push_back(static_cast<double>(number >> 40) / 3.0);
      l2.push_back(l1.back() * 7.0);
    }
    l1_sums.insert(l1_sums.end(), l1.begin(), l1.end());
    wanted.push_back(penalty_value(strengths[row % 3], canonical_sum_in_place(l1.data(), groups),
                                   canonical_sum_in_place(l2.data(), groups)));
  }
  std::vector<double> l2_sums(l1_sums);
  for (double& sum : l2_sums) {
    sum *= 7.0;
  }
  std::vector<double> values(rows.size());
  std::vector<double> total_sums(1);
  double total = 0.0;
  unsigned finished = 0;
  run_chunks<cuda::SumWork>(
      {rows.data(), strengths, nullptr, 0, large_rows.data(), static_cast<std::int64_t>(large_rows.size()), nullptr,
       nullptr, l1_sums.data(), l2_sums.data(), values.data(), static_cast<std::int64_t>(rows.size()), &total,
       total_sums.data(), &finished},
      cuda::penalty_values<false>);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    CHECK(values[i] == wanted[i], "row", i, "of", large_rows[i].group_count, values[i], "is not", wanted[i]);
  }
  CHECK(total == canonical_sum_in_place(wanted.data(), static_cast<std::int64_t>(wanted.size())), "total", total);
}

// A row is found among those that begin beyond chunk 2^32.
TEST(rows_beyond_4g_chunks) {
  stand_in::reset(1);
  const std::int64_t before = (std::int64_t{1} << 32) + 3;
  std::vector<float> weights(5000);
  std::vector<cuda::Row> rows;
  std::vector<std::int64_t> first_chunks;
  const Coefficients strengths = strengths_for(term_l1);
  rows.push_back({nullptr, nullptr, before * chunk_size, 0, 0, 0});
  first_chunks.push_back(0);
  const int tensors = 40;
  for (int i = 0; i < tensors; ++i) {
    first_chunks.push_back(before + 2 * i);
    rows.push_back({weights.data(), nullptr, 5000, before + 2 * i, 0, 0});
  }
  first_chunks.push_back(before + 2 * tensors);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    weights[i] = static_cast<float>(i);
  }
  const Sparse<double> sums(before + 2 * tensors);
  run_chunks<cuda::ChunkWork>({rows.data(),
                               first_chunks.data(),
                               &strengths,
                               {DType::f32, false, 0, tensors + 1, before, before + 2 * tensors},
                               sums.data(),
                               nullptr},
                              cuda::penalty_chunks<F32, 1>);
  for (int i = 0; i < tensors; ++i) {
    const double* found = sums.data() + before + 2 * i;
    CHECK(found[0] == 4095.0 * 4096.0 / 2.0 && found[0] + found[1] == 4999.0 * 5000.0 / 2.0, i, found[0], found[1]);
  }
}

// Every quotient that a place can need, of axes of every length that is divided by as it is.
TEST(carries_are_exact) {
  long wrong = 0;
  for (std::uint32_t extent = 2; extent <= cuda::most_span; ++extent) {
    const cuda::Axis axis = axis_of(extent);
    const std::uint32_t step = extent < 70 || extent > 8150 ? 1 : 211;
    for (std::uint32_t start = 0; start < extent; start += step) {
      for (std::uint32_t carry = start % 5; carry < 4320; carry += 5 * step) {
        wrong += cuda::carry_of(axis, start, carry) != (start + carry) / extent ? 1 : 0;
      }
    }
    // All numerators, at a start of 0.
    for (std::uint32_t carry = 0; carry < extent + 4320; ++carry) {
      wrong += cuda::carry_of(axis, 0, carry) != carry / extent ? 1 : 0;
    }
  }
  CHECK(wrong == 0, wrong, "quotients are wrong");
}

TEST(carries_of_long_axes) {
  for (const std::int64_t extent : {std::int64_t{8193}, (std::int64_t{1} << 31) - 1, std::int64_t{1} << 31,
                                    (std::int64_t{1} << 32) + 5, std::int64_t{1} << 47}) {
    const cuda::Axis axis = axis_of(extent);
    for (const std::int64_t start :
         {std::int64_t{0}, extent / 2, extent - 8192, extent - 4319, extent - 77, extent - 1}) {
      for (std::uint32_t carry = 0; carry < 4320; ++carry) {
        const std::uint32_t wanted = start + carry >= extent ? 1 : 0;
        CHECK(cuda::carry_of(axis, start, carry) == wanted, extent, start, carry);
      }
    }
    for (const std::int64_t element : {std::int64_t{0}, extent - 1, extent, 3 * extent + 7}) {
      CHECK(cuda::start_of(axis, element) == element % extent, extent, element);
    }
  }
}

// The last chunks of a tensor whose elements lie behind each other from the highest address down, two apart, and whose
// gradient lies the other way round.
TEST(strided_chunks_beyond_4g_elements) {
  stand_in::reset(1);
  const std::int64_t count = (std::int64_t{1} << 32) + 5000;
  const std::int64_t first = (std::int64_t{1} << 32) - 4096;
  const Sparse<float> weights(2 * count);
  const Sparse<float> gradients(count);
  const Sparse<double> l1_sums(chunk_count(count));
  const Sparse<double> l2_sums(chunk_count(count));
  float* last_weight = weights.data() + 2 * (count - 1);
  std::vector<float> host_weights(static_cast<std::size_t>(count - first));
  std::vector<float> host_gradients(host_weights.size());
  for (std::size_t i = 0; i < host_weights.size(); ++i) {
    const std::int64_t element = first + static_cast<std::int64_t>(i);
    *(last_weight - 2 * element) = host_weights[i] = static_cast<float>(i) * 0.37f - 700.0f;
    gradients.data()[element] = host_gradients[i] = static_cast<float>(i % 17);
  }
  const Layout layout = layout_of({{count, -8, 4}});
  const Coefficients strengths = strengths_for(3);
  const DeviceItem item{last_weight, gradients.data(), count, 0, DType::f32, &layout};
  run_strided<F32, 7>(item, strengths, first / chunk_size, chunk_count(count), l1_sums.data(), l2_sums.data());
  double value = 0.0;
  const Item host{host_weights.data(), host_gradients.data(), count - first, strengths, nullptr, DType::f32};
  evaluate(&host, 1, 7, &value);
  CHECK(std::memcmp(gradients.data() + first, host_gradients.data(), host_gradients.size() * sizeof(float)) == 0,
        "gradients of strided tensors beyond 2^32");
  const std::int64_t before = first / chunk_size;
  const std::int64_t chunks = chunk_count(count) - before;
  const double device_value = penalty_value(strengths, canonical_sum_in_place(l1_sums.data() + before, chunks),
                                            canonical_sum_in_place(l2_sums.data() + before, chunks));
  CHECK(device_value == value, device_value, "is not", value);
}

// Far out in tensors of 2^45 elements that repeat a few numbers: which one comes next is all that there is to be wrong.
TEST(strided_chunks_of_repeated_numbers) {
  stand_in::reset(1);
  std::vector<std::int32_t> numbers(10 + 3 * 7 * 4100);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = static_cast<std::int32_t>(i * i % 1000003) - 500000;
  }
  // The other axes have 3, 21, 86100 and 80 elements.
  const auto often = [](std::int64_t others) { return (std::int64_t{1} << 45) / others + 11; };
  const std::vector<std::vector<Layout::Axis>> shapes = {
      {{often(3), 0, 0}, {3, 4, 0}},
      {{3, 4, 0}, {often(21), 0, 0}, {7, 12, 0}},
      {{often(86100), 0, 0}, {3, 4 * 7 * 4100, 0}, {7, 4 * 4100, 0}, {4100, 4, 0}},
      {{5, 0, 0}, {often(80), 0, 0}, {2, 4, 0}, {2, -4, 0}, {2, 4, 0}, {2, 8, 0}},
  };
  const Coefficients strengths = strengths_for(3);
  for (const std::vector<Layout::Axis>& axes : shapes) {
    const Layout layout = layout_of(axes);
    std::int64_t count = 1;
    for (const Layout::Axis& axis : axes) {
      count *= axis.extent;
    }
    const DeviceItem item{numbers.data() + 10, nullptr, count, 0, DType::i32, &layout};
    const std::int64_t last = chunk_count(count);
    for (const std::int64_t chunk : {last - 2, last / 2, last / 3, std::int64_t{1} << 20}) {
      const Sparse<double> l1_sums(last);
      const Sparse<double> l2_sums(last);
      run_strided<F64, 1>(item, strengths, chunk, chunk + 2, l1_sums.data(), l2_sums.data());
      const std::int64_t begin = chunk * chunk_size;
      const std::int64_t elements = std::min<std::int64_t>(count - begin, 2 * chunk_size);
      std::vector<std::int32_t> gathered(static_cast<std::size_t>(elements));
      gather(layout, Operand::weights, item.weights, sizeof(std::int32_t), begin, elements, gathered.data());
      const Item host{gathered.data(), nullptr, elements, strengths, nullptr, DType::i32};
      double value = 0.0;
      evaluate(&host, 1, 1, &value);
      const double device_value = penalty_value(strengths, canonical_sum_in_place(l1_sums.data() + chunk, 2),
                                                canonical_sum_in_place(l2_sums.data() + chunk, 2));
      CHECK(device_value == value, "chunk", chunk, "of", last, device_value, "is not", value);
    }
  }
}

}  // namespace fastreg::test
