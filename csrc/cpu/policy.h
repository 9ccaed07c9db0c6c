// Policies: all that the core does otherwise on one processor than on another, though never with other bits. A policy
// is a row of the table in policy.cpp; a call asks it once, by the size of all its bytes and by whether it writes.
//
// A processor's family has a row where it was measured. Any other takes the row "default", whose variant lost least of
// those that were tried, on the families that were measured: safe, not best. Nothing is learned while the process runs:
// what a call costs then depends neither on the calls before it nor on who else is busy, and a forked child is as its
// parent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernel.h"

namespace fastreg {

// What is known of a machine; 0 and "" where nothing is.
struct Machine {
  std::string vendor;  // as cpuid spells it
  int family = 0;
  int model = 0;
  std::int64_t l2_bytes = 0;  // of one core
  std::int64_t l3_bytes = 0;
};

constexpr std::int64_t never = std::int64_t{1} << 62;

// By all bytes that a call reads or writes.
enum class SizeClass : std::uint8_t { within_l2, within_l3, beyond };
constexpr std::size_t size_class_count = 3;
constexpr const char* size_class_names[size_class_count] = {"within L2", "within L3", "beyond"};

struct Policy {
  const char* name;
  // By size class.
  Variant reading[size_class_count];
  Variant writing[size_class_count];
  // A gradient that is only written goes past the caches from so many bytes on: below, whoever reads it next (an
  // optimizer) finds it in a cache.
  std::int64_t bytes_worth_streaming;
  // The same where its pages are yet to be mapped: the system zeroes them just before, which leaves them in a cache.
  std::int64_t bytes_worth_streaming_if_new;
  // A task is a run of at most so many chunks: it amortises claiming.
  std::int64_t most_chunks_per_task;
  // From so many elements on, of whatever type, waking a sleeping thread pays; in the caches float64 additions are the
  // limit, and they are the same for all.
  std::int64_t elements_worth_waking;
  // The same for a thread that is awake.
  std::int64_t elements_worth_sharing;
  const char* record;  // what the row rests on
  // Of half precision, whose conversions take longer than memory, at every size; nothing: as of the other types.
  std::optional<Variant> halves = std::nullopt;
  // Of values alone, where an awake thread pays from more elements on than elsewhere: they move half the bytes.
  std::int64_t values_worth_sharing = 0;

  bool is_worth_sharing(std::int64_t elements, bool writes) const {
    return elements >= elements_worth_sharing && (writes || elements >= values_worth_sharing);
  }
  bool streams(std::int64_t bytes, bool is_new) const {
    return bytes >= (is_new ? bytes_worth_streaming_if_new : bytes_worth_streaming);
  }
};

// A policy with the caches that it counts on.
struct ChosenPolicy {
  const Policy* policy;
  std::int64_t l2_bytes;
  std::int64_t l3_bytes;
  std::string reason;
  bool is_forced;

  SizeClass size_class(std::int64_t bytes) const {
    return bytes <= l2_bytes ? SizeClass::within_l2 : bytes <= l3_bytes ? SizeClass::within_l3 : SizeClass::beyond;
  }
  Variant variant(std::int64_t bytes, bool writes) const {
    return (writes ? policy->writing : policy->reading)[static_cast<std::size_t>(size_class(bytes))];
  }
};

Machine this_machine();
ChosenPolicy policy_for(const Machine& machine);

// The policy in use: that of this machine, unless FASTREG_POLICY or force_policy names another. Throws
// std::invalid_argument at the first call if FASTREG_POLICY names none.
const ChosenPolicy& policy();

// An empty name goes back to this machine's. Not while others evaluate. Throws std::invalid_argument, naming `source`
// and the names that would do.
void force_policy(const std::string& name, const std::string& source);

std::vector<std::string> policy_names();
const char* name_of(Variant variant);

}  // namespace fastreg
