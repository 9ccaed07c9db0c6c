// Runs the threads of a block as fibers, one at a time, switching at barriers, exchanges, votes and atomics to one that
// is chosen at random (seeded). Blocks run one after the other, in a random order too.
//
// Refused, with a text that names the place: barriers that not all threads of the block reach, or at different places;
// exchanges and votes that not all lanes of the mask reach, or at different places.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace stand_in {

void set_seed(std::uint64_t seed);
std::uint64_t random_number();

// Runs a grid; gives the reason why it was refused, or an empty string.
std::string run_grid(unsigned blocks, unsigned threads, const std::function<void()>& thread);

}  // namespace stand_in
