// A call as the kernels see it: a table in device memory, the same for one tensor or for thousands.
//
// Tensors are rows, those that one kernel works side by side, so that one launch works all of them: first the strided
// ones (strided.cuh), which have a StridedRow and axes besides, then the dense ones by dtype. The chunks of all rows
// are numbered through; so are the groups of 4096 chunk sums (the chunks of the canonical sum's second level). All
// counts are 64 bits wide: a row, a chunk and a group may each be beyond 2^32.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
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

// What a strided row has besides; its axes are listed from the fastest to the slowest.
struct StridedRow {
  std::int64_t first_axis;
  std::int32_t axis_count;
  DType dtype;
};

// Strides and steps are in bytes.
//
// The element that is visited j places after the first of a chunk lies where counting on by j from that one's indices
// leads, as on an odometer: the fastest axis moves by carry_0 = j, the next by carry_1 = (start_0 + carry_0) /
// extent_0, start_a being the first element's index, and so on. Whenever an axis moves by one, all the axes inside it
// have turned once more, so that the address moves by the sum of carry_a * step_a with step_a = stride_a - extent_(a-1)
// * stride_(a-1). j is below 4096, or where a few places at a chunk's end are worked out in vain, below 4320: the
// carries need no 64 bits and no division (carry_of).
struct Axis {
  std::int64_t extent;
  std::int64_t inside;  // elements between two indices: the product of the extents of the axes before it
  std::int64_t weight_stride;
  std::int64_t gradient_stride;
  std::int64_t weight_step;
  std::int64_t gradient_step;
  std::uint32_t span;        // the extent, or most_span if it is beyond
  std::uint32_t reciprocal;  // 2^32 / span, beyond it by at most 1: exact for numerators below 2^32 / span
};

// More than the carries reach, and little enough for the reciprocal.
constexpr std::int64_t most_span = 8192;

// What one launch works: rows of one dtype, or strided rows that compute as `dtype` does.
struct Launch {
  DType dtype;
  bool is_strided;
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
  std::vector<StridedRow> strided_rows;
  std::vector<Axis> axes;

  std::int64_t chunks() const { return first_chunks.back(); }
};

// The launches in their order, each for one kernel.
constexpr Launch launch_kinds[] = {
    {DType::f32, true, 0, 0, 0, 0},   {DType::f64, true, 0, 0, 0, 0},  {DType::f16, false, 0, 0, 0, 0},
    {DType::bf16, false, 0, 0, 0, 0}, {DType::f32, false, 0, 0, 0, 0}, {DType::f64, false, 0, 0, 0, 0},
};
constexpr std::size_t launch_kind_count = std::size(launch_kinds);

[[maybe_unused]] static std::size_t launch_kind_of(const DeviceItem& item) {
  if (item.layout == nullptr && is_floating(item.dtype)) {
    return 2 + static_cast<std::size_t>(item.dtype);
  }
  return is_floating(item.dtype) && item.dtype != DType::f64 ? 0 : 1;
}

// The axes of a layout, or of elements one behind the other; returns how many.
[[maybe_unused]] static std::int32_t add_axes(std::vector<Axis>& axes, const Layout* layout, std::int64_t count,
                                              DType dtype) {
  std::int32_t axis_count = 0;
  Axis last{};  // of no elements: it takes nothing from the first step
  const auto add = [&](std::int64_t extent, std::int64_t weight_stride, std::int64_t gradient_stride) {
    if (extent < 2) {
      return;
    }
    Axis axis{};
    axis.extent = extent;
    axis.inside = axis_count == 0 ? 1 : last.inside * last.extent;
    axis.weight_stride = weight_stride;
    axis.gradient_stride = gradient_stride;
    axis.weight_step = weight_stride - last.extent * last.weight_stride;
    axis.gradient_step = gradient_stride - last.extent * last.gradient_stride;
    axis.span = static_cast<std::uint32_t>(std::min(extent, most_span));
    axis.reciprocal = static_cast<std::uint32_t>((std::uint64_t{1} << 32) / axis.span + 1);
    axes.push_back(axis);
    last = axis;
    ++axis_count;
  };
  if (layout == nullptr) {
    const auto size = static_cast<std::int64_t>(item_size(dtype));
    add(count, size, size);
  } else {
    for (int a = layout->axis_count - 1; a >= 0; --a) {
      const Layout::Axis& axis = layout->axes[a];
      add(axis.extent, axis.weight_stride, axis.gradient_stride);
    }
  }
  return axis_count;
}

// The axes of a tensor whose elements are not all one behind the other, or are integers.
[[maybe_unused]] static void add_strided_row(Table& table, const DeviceItem& item) {
  StridedRow row{static_cast<std::int64_t>(table.axes.size()), 0, item.dtype};
  row.axis_count = add_axes(table.axes, item.layout, item.count, item.dtype);
  table.strided_rows.push_back(row);
}

// The groups of chunk sums of all rows.
[[maybe_unused]] static void add_groups(Table& table) {
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
}

// `all_axes`: dense rows have a StridedRow and axes too.
[[maybe_unused]] static Table make_table(const DeviceItem* items, std::size_t item_count, bool wants_value,
                                         bool all_axes = false) {
  Table table;
  table.rows.reserve(item_count);
  table.first_chunks.reserve(item_count + 1);
  std::vector<std::size_t> items_of[launch_kind_count];
  for (std::size_t i = 0; i < item_count; ++i) {
    items_of[launch_kind_of(items[i])].push_back(i);
  }
  std::int64_t chunk = 0;
  for (std::size_t kind = 0; kind < launch_kind_count; ++kind) {
    Launch launch = launch_kinds[kind];
    launch.row_begin = static_cast<std::int64_t>(table.rows.size());
    launch.chunk_begin = chunk;
    for (const std::size_t i : items_of[kind]) {
      table.rows.push_back({items[i].weights, items[i].gradients, items[i].count, chunk, static_cast<std::int64_t>(i),
                            items[i].strengths});
      table.first_chunks.push_back(chunk);
      chunk += chunk_count(items[i].count);
      if (launch.is_strided || all_axes) {
        add_strided_row(table, items[i]);
      }
    }
    launch.row_end = static_cast<std::int64_t>(table.rows.size());
    launch.chunk_end = chunk;
    if (launch.chunk_end > launch.chunk_begin) {
      table.launches.push_back(launch);
    }
  }
  table.first_chunks.push_back(chunk);
  if (wants_value) {
    add_groups(table);
  }
  return table;
}

}  // namespace fastreg::cuda
