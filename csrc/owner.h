// Whose the arrays of a call are: cpu/sharing.h decides by that whose threads take its tasks.
#pragma once

#include <cstdint>

namespace fastreg {

enum class Owner : std::uint8_t { other, torch };

}  // namespace fastreg
