// Elementary functions on single floats, free of branches so that loops over them become vector code. Included by
// kernel_templates.h only, once for every instruction set; everything is in an anonymous namespace, because a linker
// that merged the copies could hand AVX-512 code to a machine without it. No fused operations: the same input gives the
// same bits on every instruction set. Each function returns NaN for NaN.
#pragma once

namespace musespark {
namespace {

constexpr float kLog2E = 1.44269504088896340736F;

inline float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t to_bits(float x) { return __builtin_bit_cast(uint32_t, x); }

// 2^x, to 2 units in the last place; exactly 1 at 0; 0 below -126, infinity from 128 on.
inline float exp2_of(float x) {
    const float upper = x > 127.99999F ? 127.99999F : x;
    const float bounded = upper < -126.0F ? -126.0F : upper;
    const float shifted = bounded + 12582912.0F;  // 1.5 * 2^23: rounds to an integer in the low bits
    const float f = bounded - (shifted - 12582912.0F);
    // Taylor in f * ln 2, |f| <= 0.5: the first term left out is below 4e-9.
    float p = 1.5252733804059840e-5F;
    p = p * f + 1.5403530393381610e-4F;
    p = p * f + 1.3333558146428443e-3F;
    p = p * f + 9.6181291076284772e-3F;
    p = p * f + 5.5504108664821580e-2F;
    p = p * f + 2.4022650695910071e-1F;
    p = p * f + 6.9314718055994531e-1F;
    p = p * f + 1.0F;
    const float y = from_bits(to_bits(p) + (to_bits(shifted) << 23));
    const float flushed = x < -126.0F ? 0.0F : y;
    const float limited = x >= 128.0F ? __builtin_inff() : flushed;
    return x == x ? limited : x;
}

inline float sigmoid_of(float x) { return 1.0F / (1.0F + exp2_of(-x * kLog2E)); }

// To 2 units in the last place: the polynomial of Cephes' tanhf where the exponential would cancel.
inline float tanh_of(float x) {
    const float z = x * x;
    float p = -5.70498872745e-3F;
    p = p * z + 2.06390887954e-2F;
    p = p * z - 5.37397155531e-2F;
    p = p * z + 1.33314422036e-1F;
    p = p * z - 3.33332819422e-1F;
    const float near = x + x * z * p;
    const float far = 1.0F - 2.0F / (exp2_of(2.0F * kLog2E * x) + 1.0F);
    return z < 0.390625F ? near : far;
}

// Abramowitz and Stegun 7.1.26: 1.5e-7 absolute.
inline float erf_of(float x) {
    const float a = x < 0.0F ? -x : x;
    const float t = 1.0F / (1.0F + 0.3275911F * a);
    float p = 1.061405429F;
    p = p * t - 1.453152027F;
    p = p * t + 1.421413741F;
    p = p * t - 0.284496736F;
    p = p * t + 0.254829592F;
    const float y = 1.0F - p * t * exp2_of(-a * a * kLog2E);
    return x < 0.0F ? -y : y;
}

// Round to nearest, ties to even.
inline uint16_t bfloat16_of(float x) {
    const uint32_t bits = to_bits(x);
    const uint32_t rounded = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
    return static_cast<uint16_t>(x == x ? rounded : (bits >> 16 | 0x40U));
}

}  // namespace
}  // namespace musespark
