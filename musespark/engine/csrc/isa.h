// Which kernel tables this build has, which of them this machine can run, and the choice between them.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace musespark {

// Names of the tables that this machine can run, the fastest first; "portable" is always the last.
std::vector<std::string> available_isas();

// The table of that name, or the fastest one for "". "avx512" stands for whichever of avx512 and avx512_base runs here.
// Throws std::invalid_argument naming what there is.
const Kernels& choose_kernels(const std::string& isa);

}  // namespace musespark
