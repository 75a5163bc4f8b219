// AVX-512 as of 2017 (F, BW, DQ, VL), for machines without VNNI or BF16.
#include "kernels.h"
#include "simd_avx512.h"
#include "kernel_templates.h"

#if defined(__AVX512VNNI__) || defined(__AVX512BF16__)
#error "compile this file without VNNI and BF16"
#endif

namespace musespark {
const Kernels& kernels_avx512_base() {
    static constexpr Kernels table = make_kernels("avx512_base");
    return table;
}
}  // namespace musespark
