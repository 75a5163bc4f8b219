// AVX-512 with VNNI and BF16.
#include "kernels.h"
#include "simd_avx512.h"
#include "kernel_templates.h"

#if !defined(__AVX512VNNI__) || !defined(__AVX512BF16__)
#error "compile this file with VNNI and BF16"
#endif

namespace musespark {
const Kernels& kernels_avx512() {
    static constexpr Kernels table = make_kernels("avx512");
    return table;
}
}  // namespace musespark
