// The table of a call of optimizers' steps, and its places in a block of device memory: as table.h and block.h. All
// rows have up to five arrays; those that the penalty's sums are of are listed once more, in the order of the caller's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../backend.h"
#include "block.h"
#include "table.h"

namespace fastreg::cuda {

constexpr int step_operands = 5;  // parameters, gradients, first and second moments, the largest of those

// The axes of one array of a strided row.
struct OperandAxes {
  std::int64_t first;
  std::int32_t count;
  std::int32_t is_other;  // the strides are those that axes have for gradients
};

// What a row has besides; moments that it does not have are its parameters.
struct StepRow {
  void* first;
  void* second;
  void* largest;
  std::int64_t rule;
  DType dtype;
  std::int32_t is_converted;        // the gradients are of the type of the arithmetic, and the parameters are not
  OperandAxes axes[step_operands];  // of strided rows
};

// Of what the device makes a rule.
struct RuleSource {
  StepSettings settings;
  std::int64_t steps;   // that the tensor took, where
  std::int64_t* taken;  // is null
  NumbersThere there;
};

// What the device has decided before it measures.
struct StepVerdict {
  std::int32_t skips;
};

struct StepTable {
  Table all;     // of all tensors; the groups are those of norms
  Table counts;  // rows and groups of the tensors that count
  std::vector<StepRow> rows;
  std::vector<StepRule> rules;  // each once, or none where the device makes them
  std::vector<RuleSource> sources;
  std::vector<Coefficients> coefficients;  // of the rules
};

inline bool is_strided(const StepItem& item) {
  const auto has_layout = [](const StepOperand& operand) {
    return operand.data != nullptr && operand.layout != nullptr;
  };
  return has_layout(item.parameters) || has_layout(item.gradients) || has_layout(item.first) ||
         has_layout(item.second) || has_layout(item.largest);
}

inline void add_operand(std::vector<Axis>& axes, OperandAxes& operand, const StepOperand& array, std::int64_t count,
                        DType dtype, bool is_other) {
  operand = {static_cast<std::int64_t>(axes.size()), 0, is_other && array.layout != nullptr ? 1 : 0};
  if (array.data != nullptr) {
    operand.count = add_axes(axes, array.layout, count, dtype);
  }
}

// The index of a rule among those that are there. Most tensors have one of the last ones.
inline std::int64_t find_rule(std::vector<StepRule>& rules, const StepRule& rule) {
  constexpr std::size_t most = 8;
  for (std::size_t back = 1; back <= most && back <= rules.size(); ++back) {
    // Padding that differs makes a rule twice, which is right too.
    // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison)
    if (std::memcmp(&rules[rules.size() - back], &rule, sizeof rule) == 0) {
      return static_cast<std::int64_t>(rules.size() - back);
    }
  }
  rules.push_back(rule);
  return static_cast<std::int64_t>(rules.size()) - 1;
}

inline StepTable make_step_table(const StepCall& call, bool measures) {
  StepTable made;
  std::vector<DeviceItem> items;
  std::vector<std::int64_t> rule_of_item;
  items.reserve(call.item_count);
  rule_of_item.reserve(call.item_count);
  static const Layout any_layout{};
  for (std::size_t i = 0; i < call.item_count; ++i) {
    const StepItem& item = call.items[i];
    if (call.on_device == nullptr) {
      rule_of_item.push_back(find_rule(made.rules, item.rule));
    } else {
      const StepOnDevice& given = *call.on_device;
      made.sources.push_back({given.settings[i], given.steps[i], given.taken[i],
                              given.there != nullptr ? given.there[i] : NumbersThere{}});
      rule_of_item.push_back(static_cast<std::int64_t>(i));
    }
    items.push_back({item.parameters.data, item.gradients.data, item.count,
                     static_cast<std::uint32_t>(rule_of_item.back()), item.dtype,
                     is_strided(item) && item.count != 0 ? &any_layout : nullptr});
  }
  for (const StepRule& rule : made.rules) {
    made.coefficients.push_back(rule.coefficients);
  }
  made.all = make_table(items.data(), items.size(), measures);
  made.all.strided_rows.clear();
  made.all.axes.clear();
  std::vector<std::int64_t> rank(call.item_count, -1);
  std::int64_t counted = 0;
  for (std::size_t i = 0; i < call.item_count; ++i) {
    if (call.items[i].rule.counts) {
      rank[i] = counted++;
    }
  }
  for (const Row& row : made.all.rows) {
    const auto i = static_cast<std::size_t>(row.item);
    const StepItem& item = call.items[i];
    // Kernels may take it that all of them are in device memory.
    const auto or_parameters = [&](const StepOperand& array) {
      return array.data != nullptr ? array.data : item.parameters.data;
    };
    StepRow step{or_parameters(item.first),
                 or_parameters(item.second),
                 or_parameters(item.largest),
                 rule_of_item[i],
                 item.dtype,
                 item.gradient_dtype != item.dtype ? 1 : 0,
                 {}};
    if (is_strided(item) && item.count != 0) {
      const DType arithmetic = arithmetic_of(item.dtype);
      std::vector<Axis>& axes = made.all.axes;
      add_operand(axes, step.axes[0], item.parameters, item.count, item.dtype, false);
      add_operand(axes, step.axes[1], item.gradients, item.count, item.gradient_dtype, true);
      add_operand(axes, step.axes[2], item.first, item.count, arithmetic, true);
      add_operand(axes, step.axes[3], item.second, item.count, arithmetic, true);
      add_operand(axes, step.axes[4], item.largest, item.count, arithmetic, true);
    }
    made.rows.push_back(step);
    if (rank[i] >= 0) {
      made.counts.rows.push_back(row);
      made.counts.rows.back().item = rank[i];
    }
  }
  if (call.task == StepTask::take) {
    add_groups(made.counts);
  }
  return made;
}

// First the counter, then what is sent, of which the rules change at every step, then what kernels write.
struct StepPlacesInBlock {
  std::size_t coefficients, rules, sources, rows, first_chunks, step_rows, axes, count_rows, count_groups,
      count_large_rows, norm_groups, norm_large_rows, sent_end;
  std::size_t made_rules, made_coefficients, verdict;
  std::size_t l1_sums, l2_sums, zeros_of_chunks, maxima;
  std::size_t l1_group_sums, l2_group_sums, group_zeros, group_maxima, group_nonfinite;
  std::size_t values, zeros, total_sums, norms, squares, state, end;

  StepPlacesInBlock(const StepTable& table, bool on_device) {
    std::size_t next = Places::strengths;
    const auto place = [&](std::size_t& offset, std::size_t count, std::size_t size) {
      offset = next;
      next = (next + count * size + Places::alignment - 1) / Places::alignment * Places::alignment;
    };
    place(coefficients, table.coefficients.size(), sizeof(Coefficients));
    place(rules, table.rules.size(), sizeof(StepRule));
    place(sources, table.sources.size(), sizeof(RuleSource));
    place(rows, table.all.rows.size(), sizeof(Row));
    place(first_chunks, table.all.first_chunks.size(), sizeof(std::int64_t));
    place(step_rows, table.rows.size(), sizeof(StepRow));
    place(axes, table.all.axes.size(), sizeof(Axis));
    place(count_rows, table.counts.rows.size(), sizeof(Row));
    place(count_groups, table.counts.groups.size(), sizeof(SumGroup));
    place(count_large_rows, table.counts.large_rows.size(), sizeof(LargeRow));
    place(norm_groups, table.all.groups.size(), sizeof(SumGroup));
    place(norm_large_rows, table.all.large_rows.size(), sizeof(LargeRow));
    sent_end = next;
    const std::size_t items = table.all.rows.size();
    const std::size_t made = on_device ? items : 0;
    const std::size_t groups = std::max(table.all.groups.size(), table.counts.groups.size());
    const auto chunks = static_cast<std::size_t>(table.all.chunks());
    place(made_rules, made, sizeof(StepRule));
    place(made_coefficients, made, sizeof(Coefficients));
    place(verdict, 1, sizeof(StepVerdict));
    place(l1_sums, chunks, sizeof(double));
    place(l2_sums, chunks, sizeof(double));
    place(zeros_of_chunks, chunks, sizeof(std::int32_t));
    place(maxima, table.all.groups.empty() ? 0 : chunks, sizeof(double));
    place(l1_group_sums, groups, sizeof(double));
    place(l2_group_sums, groups, sizeof(double));
    place(group_zeros, groups, sizeof(double));
    place(group_maxima, table.all.groups.size(), sizeof(double));
    place(group_nonfinite, table.all.groups.size(), sizeof(double));
    place(values, table.counts.rows.size(), sizeof(double));
    place(zeros, table.counts.rows.size(), sizeof(std::int64_t));
    place(total_sums, static_cast<std::size_t>(chunk_count(static_cast<std::int64_t>(items))), sizeof(double));
    place(norms, table.all.groups.empty() ? 0 : items, sizeof(Norm));
    place(squares, table.all.groups.empty() ? 0 : items, sizeof(double));
    place(state, 1, sizeof(ClipState));
    end = next;
  }
};

inline std::vector<char> make_step_image(const StepTable& table, const StepPlacesInBlock& places) {
  std::vector<char> image(places.sent_end, 0);
  const auto put = [&](std::size_t place, const auto& from) {
    if (!from.empty()) {
      std::memcpy(image.data() + place, from.data(), from.size() * sizeof from[0]);
    }
  };
  put(places.coefficients, table.coefficients);
  put(places.rules, table.rules);
  put(places.sources, table.sources);
  put(places.rows, table.all.rows);
  put(places.first_chunks, table.all.first_chunks);
  put(places.step_rows, table.rows);
  put(places.axes, table.all.axes);
  put(places.count_rows, table.counts.rows);
  put(places.count_groups, table.counts.groups);
  put(places.count_large_rows, table.counts.large_rows);
  put(places.norm_groups, table.all.groups);
  put(places.norm_large_rows, table.all.large_rows);
  return image;
}

}  // namespace fastreg::cuda
