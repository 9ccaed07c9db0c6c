// Counts the instructions of the engine, cell by cell. What a cell needs is the same at every run and on every machine,
// however busy, so that a budget can be held to it: see budget.py.
//
//   fastreg_instructions                         what was compiled, and what can be counted here
//   valgrind --tool=callgrind --collect-atstart=no --combine-dumps=yes fastreg_instructions avx2 portable
//                                                one dump per count, named in its description
//   fastreg_instructions avx512                  one line per count, its name and the number; by the trap flag, for
//                                                what Valgrind does not know
//   fastreg_instructions --visits 'avx512/f32 L1L2 VGA/4096 elements'
//                                                that count, and how often each instruction ran: see kinds.py
//
// A name is "<instruction set>/<dtype> <terms> <outputs>/<work>", and the work
//   64 elements                one tensor: what a small call takes
//   65536 elements             one tensor, on one thread: what an element takes; 4,096 by the trap flag, which is slow
//   65536 elements, streaming  the same by the kernel with streaming stores
//   400 tensors                of 64 float32, in one call; 20 by the trap flag
// Norms, scaling by the clip, and the steps of optimizers have cells of their own: "avx2/f32 AdamW proximal/<work>".
// "<instruction set>/floor f32 read/<work>" and the like are the plain loops of the benchmark.
// "<instruction set>/nothing" is an empty body, which is part of all the others.
#include <valgrind/callgrind.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "canonical_sum.h"
#include "cpu/dispatch.h"
#include "cpu/floors.h"
#include "cpu/policy.h"
#include "cpu/pool.h"
#include "norms.h"
#include "plan.h"
#include "steps.h"
#include "trap.h"

namespace fastreg {
namespace {

constexpr std::size_t small_size = 64;
// The one that fetches most, whatever this machine's policy.
constexpr Variant counted = Variant::far;

struct Works {
  std::size_t elements;
  std::size_t tensors;
};
Works works() { return RUNNING_ON_VALGRIND != 0 ? Works{65536, 400} : Works{4096, 20}; }

// The only count that is wanted; empty: all.
std::string wanted;
bool was_counted = false;

// Counts a body. It runs once before: the first call of a function looks it up.
template <class Body>
void count(const std::string& name, Body body) {
  if (!wanted.empty() && name != wanted) {
    return;
  }
  was_counted = true;
  body();
  if (RUNNING_ON_VALGRIND != 0) {
    CALLGRIND_TOGGLE_COLLECT;
    body();
    CALLGRIND_TOGGLE_COLLECT;
    CALLGRIND_DUMP_STATS_AT(name.c_str());
  } else {
    trap::start();
    body();
    std::printf("%s %ld\n", name.c_str(), trap::stop());
  }
}

// Memory that begins 16 bytes into a line, as NumPy's large arrays do, and that holds finite numbers whatever the
// dtype: of both signs, or none below 0.
class Numbers {
 public:
  explicit Numbers(std::size_t bytes, bool both_signs = true) : memory_(new Line[bytes / sizeof(Line) + 2]) {
    for (std::size_t i = 0; i < bytes; ++i) {
      data()[i] = i % 16 < 8 || !both_signs ? 0x3c : 0xbc;
    }
  }
  unsigned char* data() const { return memory_[0].bytes + 16; }

 private:
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  std::unique_ptr<Line[]> memory_;
};

struct Outcome {
  unsigned mask;
  const char* name;
};
constexpr Outcome outcomes[] = {
    {output_value, "V"},
    {output_gradient, "G"},
    {output_value | output_gradient, "VG"},
    {output_gradient | output_add, "GA"},
    {output_value | output_gradient | output_add, "VGA"},
};

void count_cell(DType dtype, unsigned terms, unsigned outputs, const std::string& cell) {
  const auto [elements, tensors] = works();
  const Numbers weights(elements * sizeof(double));
  const Numbers gradients(elements * sizeof(double));
  const Coefficients coefficients =
      make_coefficients((terms & term_l1) != 0 ? 1e-4 : 0.0, (terms & term_l2) != 0 ? 1e-3 : 0.0, 1.0, 1.0);
  const auto item = [&](std::size_t first, std::size_t size) {
    const std::size_t offset = first * item_size(dtype);
    return Item{weights.data() + offset,
                gradients.data() + offset,
                static_cast<std::int64_t>(size),
                coefficients,
                nullptr,
                dtype};
  };
  std::vector<double> values(tensors);
  const auto evaluate_all = [&](const std::vector<Item>& items) {
    return [&] { evaluate(items.data(), items.size(), outputs, values.data()); };
  };

  const std::string array = std::to_string(elements) + " elements";
  const std::vector<Item> small{item(0, small_size)};
  const std::vector<Item> large{item(0, elements)};
  count(cell + "/" + std::to_string(small_size) + " elements", evaluate_all(small));
  count(cell + "/" + array, evaluate_all(large));

  const Cells& cells = kernels().cells[static_cast<std::size_t>(counted)];
  const Kernel streaming = cells.streaming_kernels[static_cast<std::size_t>(dtype)][terms - 1][outputs];
  if (streaming != nullptr) {
    // Not by way of evaluate, which streams only what would take minutes.
    std::vector<double> sums(2 * static_cast<std::size_t>(chunk_count(large[0].count)));
    const KernelArguments arguments{large[0].weights,
                                    large[0].gradients,
                                    large[0].count,
                                    coefficients.gradient_l1,
                                    coefficients.gradient_l2,
                                    sums.data(),
                                    sums.data() + sums.size() / 2};
    count(cell + "/" + array + ", streaming", [&] { streaming(arguments); });
  }
  if (dtype == DType::f32) {
    std::vector<Item> items;
    items.reserve(tensors);
    for (std::size_t i = 0; i < tensors; ++i) {
      items.push_back(item(i * small_size, small_size));
    }
    count(cell + "/" + std::to_string(tensors) + " tensors", evaluate_all(items));
  }
}

// Proximal steps in place, "P", and with the value and the zeros, "VP".
void count_prox(DType dtype, unsigned terms, bool value, const std::string& cell) {
  const std::size_t elements = works().elements;
  const Numbers weights(elements * sizeof(double));
  // The numbers stay as they are, but for the last bits.
  const Coefficients coefficients =
      make_prox_coefficients((terms & term_l1) != 0 ? 1e-4 : 0.0, (terms & term_l2) != 0 ? 1e-3 : 0.0, 1.0, 1e-6);
  const unsigned outputs = output_gradient | output_prox | (value ? output_value : 0u);
  for (const std::size_t size : {small_size, elements}) {
    const Item item{weights.data(), weights.data(), static_cast<std::int64_t>(size), coefficients, nullptr, dtype};
    double sum;
    std::int64_t zeros;
    count(cell + "/" + std::to_string(size) + " elements",
          [&] { evaluate(&item, 1, outputs, &sum, Owner::other, &zeros); });
  }
}

// Calls count_items with what each kind of work is called, and with its items, which make_item gives by the place of
// the first element and the number of elements.
template <class MakeItem, class CountItems>
void over_works(DType dtype, MakeItem make_item, CountItems count_items) {
  const auto [elements, tensors] = works();
  for (const std::size_t size : {small_size, elements}) {
    count_items(std::to_string(size) + " elements", std::vector{make_item(0, size)});
  }
  if (dtype == DType::f32) {
    std::vector<decltype(make_item(0, 0))> items;
    items.reserve(tensors);
    for (std::size_t i = 0; i < tensors; ++i) {
      items.push_back(make_item(i * small_size, small_size));
    }
    count_items(std::to_string(tensors) + " tensors", items);
  }
}

// Norms, and the scaling of a clip.
void count_norms(DType dtype, const std::string& prefix) {
  const Numbers numbers(works().elements * sizeof(double));
  const auto item = [&](std::size_t first, std::size_t size) {
    return NormItem{numbers.data() + first * item_size(dtype), static_cast<std::int64_t>(size), nullptr, dtype};
  };
  over_works(dtype, item, [&](const std::string& work, const std::vector<NormItem>& items) {
    std::vector<Norm> norms(items.size());
    count(prefix + " norms/" + work, [&] { measure_items(items.data(), items.size(), 0, norms.data()); });
    count(prefix + " scale/" + work, [&] { scale_items(items.data(), items.size(), 0.999); });
  });
}

struct CountedStep {
  const char* name;
  Algorithm algorithm;
  Mode mode;
  Clip measured;  // none: the step is taken
};
constexpr CountedStep counted_steps[] = {
    {"SGD momentum proximal", Algorithm::sgd, Mode::proximal, Clip::none},
    {"AdamW", Algorithm::adamw, Mode::none, Clip::none},
    {"AdamW proximal", Algorithm::adamw, Mode::proximal, Clip::none},
    {"AdamW measure data", Algorithm::adamw, Mode::gradient, Clip::data},
    {"AdamW measure total", Algorithm::adamw, Mode::gradient, Clip::total},
};

// Steps with L1, and the norms of what they clip. The penalty's value comes with every mode but none.
void count_step(const CountedStep& step, DType dtype, const std::string& cell) {
  const std::size_t bytes = works().elements * sizeof(double);
  const Numbers parameters(bytes);
  const Numbers gradients(bytes);
  const Numbers first(bytes);
  const Numbers second(bytes, false);
  StepSettings settings{};
  settings.algorithm = step.algorithm;
  settings.mode = step.mode;
  settings.lr = 1e-6;
  settings.momentum = settings.beta1 = 0.9;
  settings.beta2 = 0.999;
  settings.eps = 1e-8;
  settings.l1 = 1e-4;
  const StepRule rule = rule_of(settings, 1, 1.0, step.measured, 1.0);
  const auto item = [&](std::size_t begin, std::size_t size) {
    const std::size_t offset = begin * item_size(dtype);
    const std::size_t moments = begin * item_size(arithmetic_of(dtype));
    StepItem result{};
    result.parameters.data = parameters.data() + offset;
    result.gradients.data = gradients.data() + offset;
    result.first.data = first.data() + moments;
    result.second.data = second.data() + moments;
    result.count = static_cast<std::int64_t>(size);
    result.dtype = result.gradient_dtype = dtype;
    result.rule = rule;
    return result;
  };
  over_works(dtype, item, [&](const std::string& work, const std::vector<StepItem>& items) {
    std::vector<Norm> norms(items.size());
    std::vector<double> penalties(items.size());
    std::vector<std::int64_t> zeros(items.size());
    count(cell + "/" + work, [&] {
      if (step.measured == Clip::none) {
        take_steps(items.data(), items.size(), penalties.data(), zeros.data());
      } else {
        measure_steps(items.data(), items.size(), step.measured, 0, norms.data());
      }
    });
  });
}

// The plain loops that kernels are measured against: were one of them slow, every kernel would look fast.
void count_floors(const std::string& prefix) {
  const std::size_t elements = works().elements;
  const std::size_t bytes = elements * sizeof(float);
  const Numbers source(bytes);
  const Numbers target(bytes);
  const std::string work = std::to_string(elements) + " elements";
  const FloorLoops& loops = floor_loops();
  std::uint64_t seen = 0;
  count(prefix + "floor f32 read/" + work, [&] { seen ^= loops.read(source.data(), bytes); });
  count(prefix + "floor f32 copy/" + work, [&] { loops.copy(target.data(), source.data(), bytes); });
  count(prefix + "floor f32 add/" + work, [&] { loops.add_f32(target.data(), source.data(), bytes); });
  const Numbers first(bytes);
  const Numbers second(bytes);
  const FloorStep step{target.data(), source.data(), first.data(), second.data(), bytes, 1};
  count(prefix + "floor f32 step/" + work, [&] { loops.step(step); });
}

void count_instruction_set(const std::string& instruction_set) {
  choose_instruction_set(instruction_set, "the instruction set");
  force_policy(name_of(counted), "the policy");
  const std::string prefix = instruction_set + "/";
  count(prefix + "nothing", [] {});
  const char* const term_names[] = {"L1", "L2", "L1L2"};
  for (int dtype = 0; dtype < floating_dtype_count; ++dtype) {
    for (unsigned terms = 1; terms <= term_cells; ++terms) {
      for (const Outcome& outcome : outcomes) {
        std::string cell = prefix;
        cell.append(name_of(static_cast<DType>(dtype)))
            .append(" ")
            .append(term_names[terms - 1])
            .append(" ")
            .append(outcome.name);
        count_cell(static_cast<DType>(dtype), terms, outcome.mask, cell);
      }
      for (const bool value : {false, true}) {
        const std::string cell = prefix + name_of(static_cast<DType>(dtype)) + " " + term_names[terms - 1];
        count_prox(static_cast<DType>(dtype), terms, value, cell + (value ? " VP" : " P"));
      }
    }
    const std::string dtype_prefix = prefix + name_of(static_cast<DType>(dtype));
    count_norms(static_cast<DType>(dtype), dtype_prefix);
    for (const CountedStep& step : counted_steps) {
      count_step(step, static_cast<DType>(dtype), dtype_prefix + " " + step.name);
    }
  }
  count_floors(prefix);
}

void describe_build() {
  std::printf("compiler: %s\nbuild type: %s\ntrap flag: %s\ninstruction sets:", FASTREG_COMPILER, FASTREG_BUILD_TYPE,
              trap::works() ? "works" : "does not work");
  for (const std::string& name : usable_instruction_sets()) {
    std::printf(" %s", name.c_str());
  }
  std::printf("\n");
}

// Addresses as a disassembly of this program gives them, in hexadecimal, and how often each was reached.
void show_visits(const std::string& name) {
  wanted = name;
  count_instruction_set(name.substr(0, name.find('/')));
  if (!was_counted) {
    throw std::invalid_argument("there is no count '" + name + "'");
  }
  for (std::size_t place = 0; place < std::size(trap::visits); ++place) {
    if (trap::visits[place] != 0) {
      std::printf("%zx %u\n", place, trap::visits[place]);
    }
  }
}

int run(const std::vector<std::string>& arguments) {
  set_num_threads(1);
  if (arguments.empty()) {
    describe_build();
  } else if (RUNNING_ON_VALGRIND == 0 && !trap::works()) {
    std::fprintf(stderr, "the trap flag does not work here: run this under Valgrind\n");
    return 1;
  } else if (arguments[0] == "--visits") {
    show_visits(arguments.at(1));
  } else {
    for (const std::string& instruction_set : arguments) {
      count_instruction_set(instruction_set);
    }
  }
  return 0;
}

}  // namespace
}  // namespace fastreg

int main(int argument_count, char** arguments) {
  try {
    return fastreg::run({arguments + 1, arguments + argument_count});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
