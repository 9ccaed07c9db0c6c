// Sizes beyond 2^32: the table's arithmetic, and the device code at the end of arrays of which only the end exists.
#include <sys/mman.h>

#include <cstring>
#include <string>
#include <vector>

#include "cuda/kernel.cuh"
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

void run_chunks(const cuda::ChunkWork& work, void (*kernel)(cuda::ChunkWork)) {
  const cudaError_t error =
      cuda::launch_kernel(kernel, 2u, static_cast<unsigned>(cuda::threads_per_block), nullptr, work);
  CHECK(error == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess, stand_in::refusal());
}

}  // namespace

TEST(tables_of_huge_tensors) {
  const std::int64_t huge = (std::int64_t{1} << 46) + 4097;
  const std::vector<DeviceItem> items = {{nullptr, nullptr, 10, 0, DType::f64},
                                         {nullptr, nullptr, huge, 0, DType::f16},
                                         {nullptr, nullptr, huge, 0, DType::f16},
                                         {nullptr, nullptr, 0, 0, DType::f32}};
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
  run_chunks(
      {&row, first_chunks, &strengths, {DType::f32, 0, 1, first / chunk_size, chunks}, l1_sums.data(), l2_sums.data()},
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
  run_chunks({rows.data(),
              first_chunks.data(),
              &strengths,
              {DType::f32, 0, tensors + 1, before, before + 2 * tensors},
              sums.data(),
              nullptr},
             cuda::penalty_chunks<F32, 1>);
  for (int i = 0; i < tensors; ++i) {
    const double* found = sums.data() + before + 2 * i;
    CHECK(found[0] == 4095.0 * 4096.0 / 2.0 && found[0] + found[1] == 4999.0 * 5000.0 / 2.0, i, found[0], found[1]);
  }
}

}  // namespace fastreg::test
