// AVX2 with FMA: vectors of 8 floats.
#include <immintrin.h>

#include "kernels.h"

namespace musespark {
namespace {

struct Simd {
    using Float = __m256;
    using Int = __m256i;
    static constexpr int kWidth = 8;
    static constexpr int kTileRows[kNumFormats] = {6, 4, 2, 2};  // times two vectors a panel, in 16 registers
    static constexpr int kTilePanels[kNumFormats] = {1, 1, 1, 1};
    static constexpr int kNarrowPanels = 2;

    static Float zero() { return _mm256_setzero_ps(); }
    static Float load(const float* p) { return _mm256_loadu_ps(p); }
    static Float load_bfloat16(const void* p) {
        const __m128i halves = _mm_loadu_si128(static_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }
    static void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
    static Float set1(float x) { return _mm256_set1_ps(x); }
    static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
    static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
    static Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }

    static Int load_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static Int set1_int(int32_t x) { return _mm256_set1_epi32(x); }
    static Float to_float(Int x) { return _mm256_cvtepi32_ps(x); }

    // sum + a.even * b.even + a.odd * b.odd, for the two bfloat16 in each 32 bits.
    static Float dot_bfloat16(Float sum, Int a, Int b) {
        const Int high = _mm256_set1_epi32(static_cast<int32_t>(0xFFFF0000U));
        sum = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
                              _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)), sum);
        return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(a, high)),
                               _mm256_castsi256_ps(_mm256_and_si256(b, high)), sum);
    }

    // sum + the four products of bytes in each 32 bits. Exact: |w| * (x with the sign of w), |x| <= 127, so that pairs
    // of at most 2 * 128 * 127 fit in 16 bits.
    static constexpr uint8_t kInt8WeightXor = 0;
    static Int dot_int8(Int sum, Int weights, Int x) {
        const Int pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }

    static Int low_nibbles(Int x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
    static Int high_nibbles(Int x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }

    // The same of two vectors whose weights are from 0 to 15: two pairs of at most 2 * 15 * 127 fit in 16 bits.
    static Int dot_nibbles(Int sum, Int low, Int high, Int x_low, Int x_high) {
        const Int pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, x_low), _mm256_maddubs_epi16(high, x_high));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }

    // ---- Of attention: as in simd_avx512.h ----
    static constexpr int kAttentionRows = 4, kAttentionPanels = 1;

    static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
    static Float max_lanes(Float x) {
        x = max(x, _mm256_permute2f128_ps(x, x, 1));
        x = max(x, _mm256_permute_ps(x, 0x4E));
        return max(x, _mm256_permute_ps(x, 0xB1));
    }
    static float first(Float x) { return _mm256_cvtss_f32(x); }

    static Float exp2(Float x) {
        x = max(set1(-126.0F), x);
        const Float n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const Float f = _mm256_sub_ps(x, n);
        Float p = set1(1.326472731e-3F);
        p = multiply_add(p, f, set1(9.671512991e-3F));
        p = multiply_add(p, f, set1(5.550733581e-2F));
        p = multiply_add(p, f, set1(2.402224243e-1F));
        p = multiply_add(p, f, set1(6.931470037e-1F));
        p = multiply_add(p, f, set1(1.0F));
        const Int scaled = _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23));
        const Float y = _mm256_castsi256_ps(scaled);
        return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));  // NaN for NaN
    }

    static void store_bfloat16(void* p, Float x) {
        const Int bits = _mm256_castps_si256(x);
        const Int odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const Int rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
        const Int halves = _mm256_srli_epi32(rounded, 16);
        const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
        _mm_storeu_si128(static_cast<__m128i*>(p), packed);
    }
    static void store_bytes(void* p, Float x) {
        const Int words = _mm256_cvtps_epi32(x);
        const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packus_epi16(halves, halves));
    }
    static Int dot_keys(Int sum, Int keys, Int query) { return dot_int8(sum, keys, query); }
    static Int dot_unsigned(Int sum, Int x, Int weights) {
        const Int low = _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(255)),
                                          _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8));
        const Int high = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(weights, 8));
        return _mm256_add_epi32(sum, _mm256_add_epi32(low, high));
    }
};

}  // namespace
}  // namespace musespark

#include "kernel_templates.h"

namespace musespark {
const Kernels& kernels_avx2() {
    static constexpr Kernels table = make_kernels("avx2");
    return table;
}
}  // namespace musespark
