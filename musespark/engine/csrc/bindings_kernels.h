// Single kernels for the tests, which hold each instruction set against a float64 oracle.
#pragma once

#include <nanobind/nanobind.h>

namespace musespark {

void bind_kernels(nanobind::module_& m);

}  // namespace musespark
