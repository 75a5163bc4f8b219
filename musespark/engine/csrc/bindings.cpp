#include <nanobind/nanobind.h>

NB_MODULE(_native, m) {
    m.def("build_info", [] { return "minimal"; });
}
