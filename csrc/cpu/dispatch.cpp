#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

#include "floors.h"
#include "norm_loops.h"
#include "step_loops.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastreg {
namespace {

struct Candidate {
  const KernelTable* table;
  const FloorLoops* floor_loops;
  const NormLoops* norm_loops;  // by variant
  const StepLoops* step_loops;
  bool (*usable)();
};

#if defined(__x86_64__)
bool has_f16c() {
  // Not by __builtin_cpu_supports, which knows "f16c" in Clang from 19 on only.
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

[[maybe_unused]] bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// The best first; each with the processor features that its flags in CMakeLists.txt let the compiler use.
const Candidate candidates[] = {
#if defined(FASTREG_HAVE_AVX512)
    {&avx512::table, &avx512::floor_loops, avx512::norm_loops, &avx512::step_loops, has_avx512},
#endif
#if defined(FASTREG_HAVE_AVX2)
    {&avx2::table, &avx2::floor_loops, avx2::norm_loops, &avx2::step_loops, has_avx2},
#endif
#if defined(FASTREG_HAVE_AVX512_ON_AVX2)
    {&avx512_on_avx2::table, &avx512_on_avx2::floor_loops, avx512_on_avx2::norm_loops, &avx512_on_avx2::step_loops,
     has_avx2},
#endif
#if defined(FASTREG_HAVE_NEON)
    {&neon::table, &neon::floor_loops, neon::norm_loops, &neon::step_loops, [] { return true; }},
#endif
    {&portable::table, &portable::floor_loops, portable::norm_loops, &portable::step_loops, [] { return true; }},
};

const KernelTable* find(const std::string& name, const std::string& source) {
  std::string usable;
  for (const Candidate& candidate : candidates) {
    if (candidate.usable()) {
      if (name == candidate.table->name) {
        return candidate.table;
      }
      usable.append(usable.empty() ? "'" : ", '").append(candidate.table->name).append("'");
    }
  }
  throw std::invalid_argument(source + " is '" + name +
                              "', which this build or this processor does not have; here it can be " + usable);
}

const KernelTable* initial_table() {
  const char* name = std::getenv("FASTREG_ISA");
  if (name != nullptr && *name != '\0') {
    return find(name, "FASTREG_ISA");
  }
  for (const Candidate& candidate : candidates) {
    if (candidate.usable()) {
      return candidate.table;
    }
  }
  return &portable::table;
}

std::atomic<const KernelTable*>& active() {
  static std::atomic<const KernelTable*> table{initial_table()};
  return table;
}

const Candidate& candidate_in_use() {
  const KernelTable* table = active().load(std::memory_order_relaxed);
  return *std::find_if(std::begin(candidates), std::end(candidates),
                       [&](const Candidate& candidate) { return candidate.table == table; });
}

}  // namespace

const KernelTable& kernels() { return *active().load(std::memory_order_relaxed); }

const FloorLoops& floor_loops() { return *candidate_in_use().floor_loops; }

const NormLoops& norm_loops(Variant variant) {
  return candidate_in_use().norm_loops[static_cast<std::size_t>(variant)];
}

const StepLoops& step_loops() { return *candidate_in_use().step_loops; }

void choose_instruction_set(const std::string& name, const std::string& source) {
  active().store(find(name, source), std::memory_order_relaxed);
}

std::vector<std::string> compiled_instruction_sets() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates) {
    names.emplace_back(candidate.table->name);
  }
  return names;
}

std::vector<std::string> usable_instruction_sets() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates) {
    if (candidate.usable()) {
      names.emplace_back(candidate.table->name);
    }
  }
  return names;
}

}  // namespace fastreg
