// Which instruction set is used: the best that is compiled in and that this processor has, unless FASTREG_ISA or
// set_instruction_set names another.
#pragma once

#include <string>
#include <vector>

#include "kernel.h"

namespace fastreg {

// The table in use. Throws std::invalid_argument at the first call if FASTREG_ISA names what cannot be had.
const KernelTable& kernels();

// Throws std::invalid_argument, naming `source` and the names that would do.
void choose_instruction_set(const std::string& name, const std::string& source);

std::vector<std::string> compiled_instruction_sets();
// Those of the above that this processor can run, the best first.
std::vector<std::string> usable_instruction_sets();

}  // namespace fastreg
