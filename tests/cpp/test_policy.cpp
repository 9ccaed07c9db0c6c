// The choice of a policy, for machines that are not here.
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/pages.h"
#include "cpu/policy.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastreg::test {
namespace {

constexpr std::int64_t kibi = 1024;
constexpr std::int64_t mebi = 1024 * kibi;

std::string chosen(const std::string& vendor, int family, int model) {
  return policy_for({vendor, family, model, 1 * mebi, 32 * mebi}).policy->name;
}

bool has(const std::string& whole, const std::string& part) { return whole.find(part) != std::string::npos; }

}  // namespace

TEST(policy_of_known_families) {
  CHECK(chosen("GenuineIntel", 6, 0x8f) == "sapphire_rapids");
  CHECK(chosen("AuthenticAMD", 0x19, 0x01) == "zen3");
  CHECK(chosen("AuthenticAMD", 0x19, 0x21) == "zen3");
  CHECK(chosen("AuthenticAMD", 0x19, 0x50) == "zen3");
  CHECK(chosen("AuthenticAMD", 0x19, 0x11) == "zen4");
  CHECK(chosen("AuthenticAMD", 0x19, 0x61) == "zen4");
  CHECK(chosen("AuthenticAMD", 0x19, 0xa0) == "zen4");
  CHECK(chosen("AuthenticAMD", 0x1a, 0x02) == "zen5");
  CHECK(chosen("AuthenticAMD", 0x1a, 0x11) == "zen5");
  const ChosenPolicy zen4 = policy_for({"AuthenticAMD", 25, 17, 1 * mebi, 32 * mebi});
  CHECK(zen4.reason == "measured on this family: AuthenticAMD family 25 model 0x11", zen4.reason);
}

TEST(policy_of_unknown_families) {
  CHECK(chosen("AuthenticAMD", 0x1a, 0x24) == "default", "Zen 5 of laptops, not measured");
  CHECK(chosen("AuthenticAMD", 0x17, 0x31) == "default", "Zen 2");
  CHECK(chosen("GenuineIntel", 6, 0x6a) == "default", "Ice Lake");
  CHECK(chosen("GenuineIntel", 6, 0xcf) == "default", "Emerald Rapids");
  CHECK(chosen("GenuineIntel", 0x19, 0x11) == "default", "another vendor's family");
  CHECK(chosen("HygonGenuine", 0x18, 0x00) == "default");
  const ChosenPolicy intel = policy_for({"GenuineIntel", 6, 0x6a, 0, 0});
  CHECK(intel.reason == "the default: GenuineIntel family 6 model 0x6a was not measured", intel.reason);
  const ChosenPolicy arm = policy_for({});
  CHECK(std::string(arm.policy->name) == "default");
  CHECK(arm.reason == "the default: a processor that does not name its family was not measured", arm.reason);
}

TEST(policy_with_absurd_caches) {
  const auto caches = [](std::int64_t l2, std::int64_t l3) {
    const ChosenPolicy policy = policy_for({"AuthenticAMD", 25, 17, l2, l3});
    return std::vector<std::int64_t>{policy.l2_bytes, policy.l3_bytes};
  };
  using Sizes = std::vector<std::int64_t>;
  CHECK((caches(512 * kibi, 16 * mebi) == Sizes{512 * kibi, 16 * mebi}));
  CHECK((caches(0, 0) == Sizes{1 * mebi, 32 * mebi}), "unknown");
  CHECK((caches(-1, -1) == Sizes{1 * mebi, 32 * mebi}), "sysconf's error");
  CHECK((caches(1, 1) == Sizes{1 * mebi, 32 * mebi}), "too small");
  CHECK((caches(std::int64_t{1} << 40, std::int64_t{1} << 50) == Sizes{1 * mebi, 32 * mebi}), "too large");
  CHECK((caches(2 * mebi, 1 * mebi) == Sizes{2 * mebi, 32 * mebi}), "the third level smaller than the second");
  CHECK((caches(48 * mebi, 0) == Sizes{48 * mebi, 48 * mebi}), "no third level");
  CHECK((caches(2 * mebi, 105 * mebi) == Sizes{2 * mebi, 32 * mebi}), "a third level that many share");
}

TEST(policy_by_size) {
  const ChosenPolicy policy = policy_for({"AuthenticAMD", 25, 17, 1 * mebi, 32 * mebi});
  CHECK(policy.size_class(0) == SizeClass::within_l2);
  CHECK(policy.size_class(1 * mebi) == SizeClass::within_l2);
  CHECK(policy.size_class(1 * mebi + 1) == SizeClass::within_l3);
  CHECK(policy.size_class(32 * mebi) == SizeClass::within_l3);
  CHECK(policy.size_class(32 * mebi + 1) == SizeClass::beyond);
  const Policy& row = *policy.policy;
  for (const bool writes : {false, true}) {
    const auto& variants = writes ? row.writing : row.reading;
    CHECK(policy.variant(1, writes) == variants[0]);
    CHECK(policy.variant(2 * mebi, writes) == variants[1]);
    CHECK(policy.variant(64 * mebi, writes) == variants[2]);
  }
}

TEST(policy_of_halves) {
  CHECK(policy_for({"AuthenticAMD", 25, 17, 1 * mebi, 32 * mebi}).policy->halves == Variant::cached);
  CHECK(policy_for({"AuthenticAMD", 26, 2, 1 * mebi, 32 * mebi}).policy->halves == Variant::near);
  CHECK(!policy_for({}).policy->halves.has_value(), "not measured");
}

TEST(policy_of_values_alone) {
  const Policy& row = *policy_for({"AuthenticAMD", 26, 2, 1 * mebi, 32 * mebi}).policy;
  CHECK(!row.is_worth_sharing(64 * kibi - 1, true));
  CHECK(row.is_worth_sharing(64 * kibi, true));
  CHECK(!row.is_worth_sharing(128 * kibi - 1, false));
  CHECK(row.is_worth_sharing(128 * kibi, false));
  CHECK(policy_for({}).policy->is_worth_sharing(64 * kibi, false), "no difference where none was measured");
}

TEST(policy_of_new_memory) {
  const Policy& row = *policy_for({}).policy;
  CHECK(!row.streams(32 * mebi - 1, false));
  CHECK(row.streams(32 * mebi, false));
  CHECK(!row.streams(1024 * mebi, true));
#if defined(__linux__)
  constexpr std::size_t bytes = 4 * mebi;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  madvise(memory, bytes, MADV_NOHUGEPAGE);
  CHECK(is_unmapped(memory, bytes), "just allocated");
  CHECK(is_unmapped(static_cast<char*>(memory) + 16, bytes - 16), "an array inside");
  for (std::size_t i = 0; i < bytes / 4; i += 4096) {
    static_cast<char*>(memory)[i] = 1;
  }
  CHECK(is_unmapped(memory, bytes), "a quarter written");
  for (std::size_t i = 0; i < bytes; i += 4096) {
    static_cast<char*>(memory)[i] = 1;
  }
  CHECK(!is_unmapped(memory, bytes), "written");
  munmap(memory, bytes);
  CHECK(!is_unmapped(memory, bytes), "no answer");
#endif
}

TEST(policy_forced) {
  const std::string own = policy().policy->name;
  for (const std::string& name : policy_names()) {
    force_policy(name, "the test");
    CHECK(name == policy().policy->name, name);
    CHECK(policy().reason == "forced by the test", policy().reason);
  }
  try {
    force_policy("fast", "the test");
    CHECK(false, "a wrong name was taken");
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    CHECK(has(message, "the test must be one of 'default', 'sapphire_rapids', "), message);
    CHECK(has(message, ", not 'fast'"), message);
  }
  force_policy("", "the test");
  CHECK(own == policy().policy->name, own);
}

}  // namespace fastreg::test
