// The benchmark's floors: plain loops over memory, what any kernel pays for touching the same bytes once. Compiled like
// kernel.cpp, once per instruction set and with its flags, and all but the loops' table has internal linkage as well.
#include <cstring>

#include "floors.h"
#include "vec.h"

namespace fastreg {
namespace {

using Words = Vector<std::uint64_t>;

std::uint64_t read(const void* source, std::size_t bytes) {
  const char* from = static_cast<const char*>(source);
  Words seen[4] = {};
  std::size_t i = 0;
  for (; i + 4 * sizeof(Words) <= bytes; i += 4 * sizeof(Words)) {
    for (std::size_t k = 0; k < 4; ++k) {
      seen[k] ^= load_vector<Words>(from + i + k * sizeof(Words));
    }
  }
  Words all = seen[0] ^ seen[1] ^ seen[2] ^ seen[3];
  std::uint64_t result = 0;
  for (unsigned k = 0; k < sizeof(Words) / sizeof(std::uint64_t); ++k) {
    result ^= all[k];
  }
  for (; i < bytes; ++i) {
    result ^= static_cast<unsigned char>(from[i]);
  }
  return result;
}

void copy(void* target, const void* source, std::size_t bytes) {
  char* to = static_cast<char*>(target);
  const char* from = static_cast<const char*>(source);
  std::size_t i = 0;
  for (; i + 4 * sizeof(Words) <= bytes; i += 4 * sizeof(Words)) {
    for (std::size_t k = 0; k < 4 * sizeof(Words); k += sizeof(Words)) {
      store_vector(to + i + k, load_vector<Words>(from + i + k));
    }
  }
  std::memcpy(to + i, from + i, bytes - i);
}

template <class Real>
void add(void* target, const void* source, std::size_t bytes) {
  char* to = static_cast<char*>(target);
  const char* from = static_cast<const char*>(source);
  using V = Vector<Real>;
  std::size_t i = 0;
  for (; i + 4 * sizeof(V) <= bytes; i += 4 * sizeof(V)) {
    for (std::size_t k = 0; k < 4 * sizeof(V); k += sizeof(V)) {
      store_vector(to + i + k, load_vector<V>(to + i + k) + load_vector<V>(from + i + k));
    }
  }
  for (; i + sizeof(Real) <= bytes; i += sizeof(Real)) {
    Real a;
    Real b;
    std::memcpy(&a, to + i, sizeof a);
    std::memcpy(&b, from + i, sizeof b);
    a += b;
    std::memcpy(to + i, &a, sizeof a);
  }
}

using Floats = Vector<float>;

// One vector of parameters, and those of the moments that belong to it. Returns how far it came in bytes.
template <std::size_t moments, std::size_t times>
std::size_t step_whole(const FloorStep& step) {
  char* parameters = static_cast<char*>(step.parameters);
  const char* gradients = static_cast<const char*>(step.gradients);
  char* first = static_cast<char*>(step.first);
  char* second = static_cast<char*>(step.second);
  std::size_t i = 0;
  for (; i + sizeof(Floats) <= step.bytes; i += sizeof(Floats)) {
    Floats added = load_vector<Floats>(gradients + i);
    for (std::size_t k = 0; moments > 0 && k < times; ++k) {
      const std::size_t place = times * i + k * sizeof(Floats);
      added += load_vector<Floats>(first + place);
      store_vector(first + place, added);
      if constexpr (moments > 1) {
        added += load_vector<Floats>(second + place);
        store_vector(second + place, added);
      }
    }
    store_vector(parameters + i, load_vector<Floats>(parameters + i) + added);
  }
  return i;
}

template <std::size_t moments>
std::size_t step_moments(const FloorStep& step) {
  return step.moment_times == 1 ? step_whole<moments, 1>(step) : step_whole<moments, 2>(step);
}

void step(const FloorStep& all) {
  const std::size_t done = all.second != nullptr  ? step_moments<2>(all)
                           : all.first != nullptr ? step_moments<1>(all)
                                                  : step_moments<0>(all);
  // What is left is less than a vector of parameters: one read after the other.
  const auto rest = [&](void* target, std::size_t times) {
    if (target != nullptr) {
      for (std::size_t k = 0; k < times; ++k) {
        add<float>(static_cast<char*>(target) + times * done + k * (all.bytes - done),
                   static_cast<const char*>(all.gradients) + done, all.bytes - done);
      }
    }
  };
  rest(all.first, all.moment_times);
  rest(all.second, all.moment_times);
  rest(all.parameters, 1);
}

}  // namespace

namespace FASTREG_ISA {
constexpr FloorLoops floor_loops = {read, copy, add<float>, add<double>, step};
}

}  // namespace fastreg
