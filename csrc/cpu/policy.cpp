#include "policy.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <unistd.h>
#endif

namespace fastreg {
namespace {

constexpr std::int64_t kibi = 1024;
constexpr std::int64_t mebi = 1024 * kibi;

// ---- the tables

constexpr Variant plain = Variant::plain;
constexpr Variant near = Variant::near;
constexpr Variant far = Variant::far;
constexpr Variant pairs = Variant::pairs;
constexpr Variant cached = Variant::cached;
constexpr Variant whole = Variant::whole;

// clang-format off
constexpr Policy policies[] = {
    // reading and writing, each within L2, within L3, beyond; streaming, if new; chunks; waking, sharing; halves
    {"default", {plain, plain, near}, {plain, plain, plain}, 32 * mebi, never, 16, 256 * kibi, 64 * kibi,
     "of what was measured on other families: near takes up to 1.24 of the best for a value from DRAM, and plain up to "
     "1.6; where gradients are written near takes up to 1.67, and plain up to 1.28"},
    {"sapphire_rapids", {plain, far, far}, {plain, far, far}, 32 * mebi, never, 16, 256 * kibi, 64 * kibi,
     "2 cores: a value from DRAM takes 1.6 times the read with plain, 1.15 with near, 1.0 with far"},
    {"zen5", {whole, whole, whole}, {whole, near, whole}, 32 * mebi, never, 16, 1 * mebi, 64 * kibi,
     "2 cores, each in turn, 2026-11-29: in caches plain takes up to 1.6 times whole, cached 1.4; gradients in L3 take "
     "0.79 to 0.91 of plain with near; a value beyond takes 0.91 to 1.15 times whole with far, up to 1.14 with near; "
     "gradients beyond up to 1.18 with plain; at 64 Ki sharing takes 0.65 to 0.98 of one thread where gradients are "
     "written, 1.02 to 2.2 for a value; waking up to 1.26 at 1 Mi, 1.6 at 512 Ki; halves beyond take up to 1.5 times "
     "near with plain",
     near, 128 * kibi},
    {"zen4", {cached, cached, pairs}, {cached, cached, plain}, 32 * mebi, never, 16, 512 * kibi, 32 * kibi,
     "2 cores, each in turn, 2026-11-28: near takes up to 1.67 times plain, far 1.41; cached down to 0.8 in caches, "
     "and up to 1.3 where gradients are written beyond; a value beyond takes 0.86 to 1.02 times cached with pairs; at "
     "256 Ki elements waking takes up to 1.38 times one thread, at 512 Ki at most as long; sharing takes 0.70 to 0.84 "
     "of it at 32 Ki; halves with plain take 1.07 to 1.4 times cached",
     cached},
    {"zen3", {plain, plain, near}, {plain, plain, near}, 32 * mebi, never, 16, 256 * kibi, 64 * kibi,
     "2 cores, an early kernel: from DRAM near takes 0.7 to 0.8 of plain, in cache as long"},
    // One variant at every size, for tests and for measuring.
    {"plain", {plain, plain, plain}, {plain, plain, plain}, 32 * mebi, never, 16, 256 * kibi, 64 * kibi, "forced only"},
    {"near", {near, near, near}, {near, near, near}, 32 * mebi, never, 16, 256 * kibi, 64 * kibi, "forced only"},
    {"far", {far, far, far}, {far, far, far}, 32 * mebi, never, 16, 256 * kibi, 64 * kibi, "forced only"},
    {"pairs", {pairs, pairs, pairs}, {pairs, pairs, pairs}, 32 * mebi, never, 16, 256 * kibi, 64 * kibi, "forced only"},
    {"cached", {cached, cached, cached}, {cached, cached, cached}, 32 * mebi, never, 16, 256 * kibi, 64 * kibi,
     "forced only"},
    {"whole", {whole, whole, whole}, {whole, whole, whole}, 32 * mebi, never, 16, 256 * kibi, 64 * kibi,
     "forced only"},
};
// clang-format on

// The families that have a row of their own.
struct Family {
  const char* vendor;
  int family;
  int first_model;
  int last_model;
  const char* policy;
};
constexpr Family families[] = {
    {"GenuineIntel", 6, 0x8f, 0x8f, "sapphire_rapids"},
    {"AuthenticAMD", 0x1a, 0x00, 0x1f, "zen5"},  // servers: others of Zen 5 were not measured
    {"AuthenticAMD", 0x19, 0x10, 0x1f, "zen4"},  // servers
    {"AuthenticAMD", 0x19, 0x60, 0x7f, "zen4"},  // desktops and laptops
    {"AuthenticAMD", 0x19, 0xa0, 0xaf, "zen4"},  // servers of the dense kind
    {"AuthenticAMD", 0x19, 0x00, 0x0f, "zen3"},  // servers
    {"AuthenticAMD", 0x19, 0x20, 0x5f, "zen3"},  // desktops and laptops
};

// Where a machine does not say, or says what cannot be, as virtual ones do.
constexpr std::int64_t usual_l2 = 1 * mebi;
constexpr std::int64_t usual_l3 = 32 * mebi;
// A larger third level is shared by many cores, and by other virtual machines.
constexpr std::int64_t most_of_l3 = 32 * mebi;

const Policy* find(const char* name) {
  for (const Policy& row : policies) {
    if (std::strcmp(row.name, name) == 0) {
      return &row;
    }
  }
  return nullptr;
}

bool is_within(std::int64_t value, std::int64_t least, std::int64_t most) { return value >= least && value <= most; }

std::string in_hexadecimal(int number) {
  std::string digits;
  do {
    digits.insert(digits.begin(), "0123456789abcdef"[number % 16]);
    number /= 16;
  } while (number != 0);
  return "0x" + digits;
}

std::string description(const Machine& machine) {
  if (machine.vendor.empty()) {
    return "a processor that does not name its family";
  }
  return machine.vendor + " family " + std::to_string(machine.family) + " model " + in_hexadecimal(machine.model);
}

#if defined(__x86_64__)
// By leaf 4 of Intel or leaf 0x8000001d of AMD, which have one form: one cache per index.
void read_caches(unsigned leaf, Machine& machine) {
  for (unsigned index = 0; index < 16; ++index) {
    unsigned a = 0;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    constexpr unsigned of_instructions = 2;
    if (__get_cpuid_count(leaf, index, &a, &b, &c, &d) == 0 || (a & 31) == 0) {
      return;
    }
    if ((a & 31) == of_instructions) {
      continue;
    }
    const std::int64_t ways = (b >> 22) + 1;
    const std::int64_t partitions = ((b >> 12) & 1023) + 1;
    const std::int64_t line = (b & 4095) + 1;
    const std::int64_t bytes = ways * partitions * line * (std::int64_t{c} + 1);
    const unsigned level = (a >> 5) & 7;
    if (level == 2) {
      machine.l2_bytes = bytes;
    } else if (level == 3) {
      machine.l3_bytes = bytes;
    }
  }
}

void read_processor(Machine& machine) {
  unsigned a = 0;
  unsigned registers[3] = {};  // b, d, c: the order of the name's letters
  if (__get_cpuid(0, &a, &registers[0], &registers[2], &registers[1]) == 0) {
    return;
  }
  machine.vendor.assign(reinterpret_cast<const char*>(registers), sizeof registers);
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) != 0) {
    const unsigned family = (a >> 8) & 15;
    machine.family = static_cast<int>(family == 15 ? family + ((a >> 20) & 255) : family);
    machine.model = static_cast<int>(((a >> 12) & 0xf0) | ((a >> 4) & 15));
  }
  read_caches(machine.vendor == "AuthenticAMD" ? 0x8000001du : 4u, machine);
}
#endif

ChosenPolicy choose(const char* name, const std::string& source) {
  ChosenPolicy chosen = policy_for(this_machine());
  if (name == nullptr || *name == '\0') {
    return chosen;
  }
  chosen.policy = find(name);
  if (chosen.policy == nullptr) {
    std::string names;
    for (const Policy& row : policies) {
      names.append(names.empty() ? "'" : ", '").append(row.name).append("'");
    }
    throw std::invalid_argument(source + " must be one of " + names + ", not '" + name + "'");
  }
  chosen.reason = "forced by " + source;
  chosen.is_forced = true;
  return chosen;
}

// Those that were chosen stay, once each: a call may still use one.
const ChosenPolicy* kept(const char* name, const std::string& source) {
  static std::mutex mutex;
  static auto* const all = new std::map<std::string, ChosenPolicy>;
  const ChosenPolicy chosen = choose(name, source);
  const std::lock_guard<std::mutex> lock(mutex);
  return &all->try_emplace(chosen.policy->name + chosen.reason, chosen).first->second;
}

std::atomic<const ChosenPolicy*>& active() {
  static std::atomic<const ChosenPolicy*> chosen{kept(std::getenv("FASTREG_POLICY"), "FASTREG_POLICY")};
  return chosen;
}

}  // namespace

Machine this_machine() {
  Machine machine;
#if defined(__x86_64__)
  read_processor(machine);
#endif
#if defined(_SC_LEVEL2_CACHE_SIZE)
  if (machine.l2_bytes == 0) {
    machine.l2_bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  }
  if (machine.l3_bytes == 0) {
    machine.l3_bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  }
#endif
  return machine;
}

ChosenPolicy policy_for(const Machine& machine) {
  ChosenPolicy chosen{find("default"), 0, 0, "the default: " + description(machine) + " was not measured", false};
  for (const Family& row : families) {
    if (machine.vendor == row.vendor && machine.family == row.family &&
        is_within(machine.model, row.first_model, row.last_model)) {
      chosen.policy = find(row.policy);
      chosen.reason = "measured on this family: " + description(machine);
    }
  }
  chosen.l2_bytes = is_within(machine.l2_bytes, 128 * kibi, 64 * mebi) ? machine.l2_bytes : usual_l2;
  const std::int64_t l3 = is_within(machine.l3_bytes, chosen.l2_bytes, 2048 * mebi) ? machine.l3_bytes : usual_l3;
  chosen.l3_bytes = std::max(std::min(l3, most_of_l3), chosen.l2_bytes);
  return chosen;
}

const ChosenPolicy& policy() { return *active().load(std::memory_order_acquire); }

void force_policy(const std::string& name, const std::string& source) {
  active().store(kept(name.c_str(), source), std::memory_order_release);
}

std::vector<std::string> policy_names() {
  std::vector<std::string> names;
  for (const Policy& row : policies) {
    names.emplace_back(row.name);
  }
  return names;
}

const char* name_of(Variant variant) {
  constexpr const char* names[] = {"plain", "near", "far", "pairs", "cached", "whole"};
  static_assert(std::size(names) == variant_count);
  return names[static_cast<std::size_t>(variant)];
}

}  // namespace fastreg
