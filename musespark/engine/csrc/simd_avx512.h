// Vectors of 16 floats. Compiled twice: with VNNI and BF16 instructions (Zen 4, Sapphire Rapids and later) and without.
#pragma once

#include <immintrin.h>

namespace musespark {
namespace {

struct Simd {
    using Float = __m512;
    using Int = __m512i;
    static constexpr int kWidth = 16;

    // Rows times panels of 16 outputs that fit in the 32 registers together, per format; the narrow shape is for few
    // rows, where several panels keep enough independent chains in flight.
    static constexpr int kTileRows[kNumFormats] = {8, 8, 6, 6};
    static constexpr int kTilePanels[kNumFormats] = {2, 2, 2, 2};
    static constexpr int kNarrowPanels = 4;

    static Float zero() { return _mm512_setzero_ps(); }
    static Float load(const float* p) { return _mm512_loadu_ps(p); }
    static Float load_bfloat16(const void* p) {
        const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }
    static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
    static Float set1(float x) { return _mm512_set1_ps(x); }
    static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
    static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
    static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }

    static Int load_int(const void* p) { return _mm512_loadu_si512(p); }
    static Int set1_int(int32_t x) { return _mm512_set1_epi32(x); }
    static Float to_float(Int x) { return _mm512_cvtepi32_ps(x); }

    // sum + a.even * b.even + a.odd * b.odd, for the two bfloat16 in each 32 bits.
    static Float dot_bfloat16(Float sum, Int a, Int b) {
#ifdef __AVX512BF16__
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
        const Int high = _mm512_set1_epi32(static_cast<int32_t>(0xFFFF0000U));
        sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)),
                              _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), sum);
        return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, high)),
                               _mm512_castsi512_ps(_mm512_and_si512(b, high)), sum);
#endif
    }

    static Int low_nibbles(Int x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
    static Int high_nibbles(Int x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }

    // `dot_int8`: sum + the four products of bytes in each 32 bits. `dot_nibbles`: the same of two vectors whose
    // weights are from 0 to 15. Exact: |x| <= 127.
#ifdef __AVX512VNNI__
    static constexpr uint8_t kInt8WeightXor = 0x80;  // the instruction takes one unsigned operand
    static Int dot_int8(Int sum, Int weights, Int x) { return _mm512_dpbusd_epi32(sum, weights, x); }
    static Int dot_nibbles(Int sum, Int low, Int high, Int x_low, Int x_high) {
        return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, low, x_low), high, x_high);
    }
#else
    static constexpr uint8_t kInt8WeightXor = 0;
    static Int dot_int8(Int sum, Int weights, Int x) {
        // |w| * (x with the sign of w): pairs of at most 2 * 128 * 127 fit in 16 bits.
        const __mmask64 negative = _mm512_movepi8_mask(weights);
        const Int signed_x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
        const Int pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(weights), signed_x);
        return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
    static Int dot_nibbles(Int sum, Int low, Int high, Int x_low, Int x_high) {
        // Two pairs of at most 2 * 15 * 127 fit in 16 bits together.
        const Int pairs = _mm512_add_epi16(_mm512_maddubs_epi16(low, x_low), _mm512_maddubs_epi16(high, x_high));
        return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
#endif

    // ---- Of attention ----
    static constexpr int kAttentionRows = 8, kAttentionPanels = 2;

    static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }  // b where one is NaN
    static Float max_lanes(Float x) {
        x = max(x, _mm512_shuffle_f32x4(x, x, 0x4E));
        x = max(x, _mm512_shuffle_f32x4(x, x, 0xB1));
        x = max(x, _mm512_permute_ps(x, 0x4E));
        return max(x, _mm512_permute_ps(x, 0xB1));
    }
    static float first(Float x) { return _mm512_cvtss_f32(x); }

    // 2^x for x from -126 to 0, 2^-126 below; 1e-7 of it off; exactly 1 at 0. A minimax polynomial.
    static Float exp2(Float x) {
        x = max(set1(-126.0F), x);
        const Float n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const Float f = _mm512_sub_ps(x, n);
        Float p = set1(1.326472731e-3F);
        p = multiply_add(p, f, set1(9.671512991e-3F));
        p = multiply_add(p, f, set1(5.550733581e-2F));
        p = multiply_add(p, f, set1(2.402224243e-1F));
        p = multiply_add(p, f, set1(6.931470037e-1F));
        p = multiply_add(p, f, set1(1.0F));
        return _mm512_scalef_ps(p, n);
    }

    static void store_bfloat16(void* p, Float x) {
#ifdef __AVX512BF16__
        _mm256_storeu_si256(static_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
#else
        const Int bits = _mm512_castps_si512(x);
        const Int odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const Int rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
        _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#endif
    }
    // Rounded to bytes; x from 0 to 255.
    static void store_bytes(void* p, Float x) {
        _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
    }
    // `dot_int8` of keys, stored as weights are.
    static Int dot_keys(Int sum, Int keys, Int query) {
#ifdef __AVX512VNNI__
        return dot_unsigned(sum, keys, query);
#else
        return dot_int8(sum, keys, query);
#endif
    }
    // sum + the four products of unsigned and signed bytes in each 32 bits.
    static Int dot_unsigned(Int sum, Int x, Int weights) {
#ifdef __AVX512VNNI__
        // As an instruction: of the compiler's own function for it, GCC 12 makes copies of all sums of a tile in each
        // step (of the one for bfloat16, too; but that one written out is slower still).
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(weights));
        return sum;
#else
        const Int low = _mm512_madd_epi16(_mm512_and_si512(x, _mm512_set1_epi16(255)),
                                          _mm512_srai_epi16(_mm512_slli_epi16(weights, 8), 8));
        const Int high = _mm512_madd_epi16(_mm512_srli_epi16(x, 8), _mm512_srai_epi16(weights, 8));
        return _mm512_add_epi32(sum, _mm512_add_epi32(low, high));
#endif
    }
};

}  // namespace
}  // namespace musespark
