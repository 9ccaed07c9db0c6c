// A call as the kernels see it: a table in device memory, the same for one tensor or for thousands.
//
// Tensors are rows, those of one dtype side by side, so that one launch works all of them. The chunks of all rows are
// numbered through; so are the groups of 4096 chunk sums (the chunks of the canonical sum's second level). All counts
// are 64 bits wide: a row, a chunk and a group may each be beyond 2^32.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../backend.h"
#include "../canonical_sum.h"

namespace fastreg::cuda {

struct Row {
  const void* weights;
  void* gradients;
  std::int64_t count;
  std::int64_t first_chunk;
  std::int64_t item;  // the place among the caller's tensors, and so of its value
  std::int64_t strengths;
};

// Chunk sums that are the terms of one chunk of the second level. An empty row has a group of none.
struct SumGroup {
  std::int64_t first_sum;
  std::int64_t row;
  std::int32_t count;
  std::int32_t is_all;  // the row has no other
};

// A row of more than one group.
struct LargeRow {
  std::int64_t row;
  std::int64_t first_group;
  std::int64_t group_count;
};

// What one launch works: rows of one dtype.
struct Launch {
  DType dtype;
  std::int64_t row_begin;
  std::int64_t row_end;
  std::int64_t chunk_begin;
  std::int64_t chunk_end;
};

struct Table {
  std::vector<Row> rows;
  std::vector<std::int64_t> first_chunks;  // of each row, then the number of all chunks
  std::vector<SumGroup> groups;
  std::vector<LargeRow> large_rows;
  std::vector<Launch> launches;

  std::int64_t chunks() const { return first_chunks.back(); }
};

[[maybe_unused]] static Table make_table(const DeviceItem* items, std::size_t item_count, bool wants_value) {
  Table table;
  table.rows.reserve(item_count);
  table.first_chunks.reserve(item_count + 1);
  std::int64_t chunk = 0;
  for (int dtype = 0; dtype < floating_dtype_count; ++dtype) {
    Launch launch{static_cast<DType>(dtype), static_cast<std::int64_t>(table.rows.size()), 0, chunk, 0};
    for (std::size_t i = 0; i < item_count; ++i) {
      if (items[i].dtype == launch.dtype) {
        table.rows.push_back({items[i].weights, items[i].gradients, items[i].count, chunk, static_cast<std::int64_t>(i),
                              items[i].strengths});
        table.first_chunks.push_back(chunk);
        chunk += chunk_count(items[i].count);
      }
    }
    launch.row_end = static_cast<std::int64_t>(table.rows.size());
    launch.chunk_end = chunk;
    if (launch.chunk_end > launch.chunk_begin) {
      table.launches.push_back(launch);
    }
  }
  table.first_chunks.push_back(chunk);
  if (!wants_value) {
    return table;
  }
  for (std::size_t r = 0; r < table.rows.size(); ++r) {
    const std::int64_t chunks = chunk_count(table.rows[r].count);
    const std::int64_t groups = std::max<std::int64_t>(1, chunk_count(chunks));
    const auto row = static_cast<std::int64_t>(r);
    if (groups > 1) {
      table.large_rows.push_back({row, static_cast<std::int64_t>(table.groups.size()), groups});
    }
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t begin = g * chunk_size;
      table.groups.push_back({table.rows[r].first_chunk + begin, row,
                              static_cast<std::int32_t>(std::min<std::int64_t>(chunks - begin, chunk_size)),
                              groups == 1 ? 1 : 0});
    }
  }
  return table;
}

}  // namespace fastreg::cuda
