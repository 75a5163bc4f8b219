// Attention alone, for tests and benchmarks.
#pragma once

#include <nanobind/nanobind.h>

namespace musespark {

void bind_attention(nanobind::module_& kernels);

}  // namespace musespark
