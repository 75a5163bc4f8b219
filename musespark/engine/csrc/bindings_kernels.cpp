#include "bindings_kernels.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings_attention.h"
#include "isa.h"
#include "operand.h"
#include "thread_pool.h"
#include "weights.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace musespark {
namespace {

using Matrix = nb::ndarray<const float, nb::c_contig, nb::device::cpu, nb::ndim<2>>;
using OutMatrix = nb::ndarray<float, nb::c_contig, nb::device::cpu, nb::ndim<2>>;
using IntMatrix = nb::ndarray<const int8_t, nb::c_contig, nb::device::cpu, nb::ndim<2>>;
using ByteMatrix = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu, nb::ndim<2>>;
using Row = nb::ndarray<float, nb::c_contig, nb::device::cpu, nb::ndim<1>>;

Format format_of(const std::string& name) {
    if (name == "float32") return Format::float32;
    if (name == "bf16") return Format::bfloat16;
    if (name == "int8") return Format::int8;
    if (name == "int4") return Format::int4;
    throw std::invalid_argument("unknown format " + name);
}

Tensor tensor_of(const auto& array, Tensor::Type type) {
    Tensor tensor;
    tensor.name = "weights";
    tensor.type = type;
    tensor.shape = {static_cast<int64_t>(array.shape(0)), static_cast<int64_t>(array.shape(1))};
    tensor.data = array.data();
    return tensor;
}

void run_product(const Tensor& weights, const std::string& format, const Matrix& x, const OutMatrix& out,
                 int num_threads, const std::string& isa) {
    const auto rows = static_cast<int64_t>(x.shape(0)), in = static_cast<int64_t>(x.shape(1));
    if (in != weights.shape[1] || out.shape(0) != x.shape(0) ||
        static_cast<int64_t>(out.shape(1)) != weights.shape[0]) {
        throw std::invalid_argument("shapes don't fit");
    }
    ThreadPool pool(num_threads);
    const Machine machine = {choose_kernels(isa), pool};
    const PackedMatrix packed = pack({weights}, format_of(format), machine.kernels, pool);
    Operand operand;
    operand.shape_for(packed, rows);
    for (int64_t row = 0; row < rows; ++row) operand.prepare(machine.kernels, row, x.data() + row * in, in);
    multiply(machine, packed, operand, rows, out.data(), packed.out);
}

void product(const Matrix& weights, const std::string& format, const Matrix& x, const OutMatrix& out, int num_threads,
             const std::string& isa) {
    Tensor tensor = tensor_of(weights, Tensor::Type::float32);
    tensor.group_size = kDefaultGroup;
    run_product(tensor, format, x, out, num_threads, isa);
}

void scaled_product(Tensor tensor, const std::string& format, const Matrix& scales, const Matrix& x,
                    const OutMatrix& out, const std::string& isa) {
    tensor.scales = scales.data();
    tensor.scales_type = Tensor::Type::float32;
    tensor.group_size = tensor.shape[1] / static_cast<int64_t>(scales.shape(1));
    run_product(tensor, format, x, out, 1, isa);
}

void int8_product(const IntMatrix& weights, const Matrix& scales, const Matrix& x, const OutMatrix& out,
                  const std::string& isa) {
    scaled_product(tensor_of(weights, Tensor::Type::int8), "int8", scales, x, out, isa);
}

// Rows of words as in `Tensor`; `format` is what they are packed to.
void int4_product(const ByteMatrix& words, const std::string& format, const Matrix& scales, const Matrix& x,
                  const OutMatrix& out, const std::string& isa) {
    Tensor tensor = tensor_of(words, Tensor::Type::int4);
    tensor.shape[1] = static_cast<int64_t>(x.shape(1));
    if (divide_up(tensor.shape[1], 8) * 4 != static_cast<int64_t>(words.shape(1))) {
        throw std::invalid_argument("shapes don't fit");
    }
    scaled_product(tensor, format, scales, x, out, isa);
}

void map(const std::string& name, const Row& x, const std::string& isa) {
    const Kernels& kernels = choose_kernels(isa);
    const auto n = static_cast<int64_t>(x.shape(0));
    if (name == "sigmoid") {
        kernels.sigmoid(x.data(), n);
    } else if (name == "gelu") {
        kernels.gelu(x.data(), n);
    } else if (name == "soft_cap") {
        kernels.soft_cap(x.data(), n, 0.5F, 20.0F);
    } else if (name == "silu") {
        const std::vector<float> ones(static_cast<size_t>(n), 1.0F);
        kernels.silu_multiply(x.data(), ones.data(), n, x.data());
    } else if (name == "rms_norm") {
        kernels.rms_norm(x.data(), nullptr, n, 1e-5F, x.data());
    } else if (name == "layer_norm") {
        const std::vector<float> ones(static_cast<size_t>(n), 1.0F), zeros(static_cast<size_t>(n));
        kernels.layer_norm(x.data(), ones.data(), zeros.data(), n, 1e-5F, x.data());
    } else {
        throw std::invalid_argument("unknown kernel " + name);
    }
}

// How often each of `count` tasks runs in one loop of a pool, summed over `loops` loops.
void count_tasks(const nb::ndarray<int64_t, nb::c_contig, nb::device::cpu, nb::ndim<1>>& counts, int num_threads,
                 int64_t loops) {
    const nb::gil_scoped_release release;
    ThreadPool pool(num_threads);
    for (int64_t loop = 0; loop < loops; ++loop) {
        pool.run(static_cast<int64_t>(counts.shape(0)), [&](int64_t index, int) { counts.data()[index] += 1; });
    }
}

}  // namespace

void bind_kernels(nb::module_& m) {
    nb::module_ kernels = m.def_submodule("kernels", "Single kernels, for the tests.");
    kernels.def("product", &product, "weights"_a.noconvert(), "format"_a, "x"_a.noconvert(), "out"_a.noconvert(),
                "num_threads"_a, "isa"_a);
    kernels.def("int8_product", &int8_product, "weights"_a.noconvert(), "scales"_a.noconvert(), "x"_a.noconvert(),
                "out"_a.noconvert(), "isa"_a);
    kernels.def("int4_product", &int4_product, "words"_a.noconvert(), "format"_a, "scales"_a.noconvert(),
                "x"_a.noconvert(), "out"_a.noconvert(), "isa"_a);
    kernels.def("map", &map, "name"_a, "x"_a.noconvert(), "isa"_a);
    kernels.def("count_tasks", &count_tasks, "counts"_a.noconvert(), "num_threads"_a, "loops"_a);
    bind_attention(kernels);
}

}  // namespace musespark
