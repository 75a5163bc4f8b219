// The kernels, written once over a `Simd` that the including file defines. No libstdc++ templates here and everything
// in an anonymous namespace: see kernel_math.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernel_math.h"
#include "kernels.h"

#if defined(__clang__)
#define MUSESPARK_UNROLL _Pragma("clang loop unroll(full)")
#define MUSESPARK_ELEMENTWISE _Pragma("clang loop vectorize(assume_safety)")
#else
#define MUSESPARK_UNROLL _Pragma("GCC unroll 16")
// Element i of the output depends on element i of the inputs only, and arrays are the same or apart: so an output may
// be one of the inputs and the loop is vector code all the same.
#define MUSESPARK_ELEMENTWISE _Pragma("GCC ivdep")
#endif

namespace musespark {
namespace {

using Float = Simd::Float;
using Int = Simd::Int;
constexpr int kWidth = Simd::kWidth;
constexpr int kVectors = static_cast<int>(kPanel) / kWidth;  // vectors of 16 outputs

inline Int broadcast_word(const void* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof word);
    return Simd::set1_int(word);
}

}  // namespace
}  // namespace musespark

#include "kernel_products.h"
#include "kernel_rows.h"
#include "kernel_attention.h"

namespace musespark {
namespace {

constexpr Kernels make_kernels(const char* isa) {
    return {isa,
            Simd::kInt8WeightXor,
            {gemm<Float32Tile>, gemm<Bfloat16Tile>, gemm<IntegerTile<Int8Step>>, gemm<IntegerTile<Int4Step>>},
            to_bfloat16,
            to_int8,
            rms_norm,
            input_scaled_norm,
            layer_norm,
            residual_gate,
            add,
            add_scaled,
            add_compensated,
            scale,
            sigmoid,
            multiply_by_sigmoid,
            silu_multiply,
            gelu,
            soft_cap,
            rotate,
            rotate_neighbours,
            {attend_page<Float32Page>, attend_page<Bfloat16Page>, attend_page<Int8Page>}};
}

}  // namespace
}  // namespace musespark
