// Any machine: vectors of 4 floats in the compiler's own vector types (SSE2 on x86, NEON on ARM, or plain code).
#include <cstdint>
#include <cstring>

#include "kernel_math.h"
#include "kernels.h"

namespace musespark {
namespace {

struct Simd {
    typedef float Float __attribute__((vector_size(16)));
    typedef int32_t Int __attribute__((vector_size(16)));
    typedef uint32_t Unsigned __attribute__((vector_size(16)));
    static constexpr int kWidth = 4;
    static constexpr int kTileRows[kNumFormats] = {2, 2, 1, 1};
    static constexpr int kTilePanels[kNumFormats] = {1, 1, 1, 1};
    static constexpr int kNarrowPanels = 1;

    static Float zero() { return Float{0, 0, 0, 0}; }
    static Float load(const float* p) {
        Float x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    static Float load_bfloat16(const void* p) {
        uint16_t halves[kWidth];
        std::memcpy(halves, p, sizeof halves);
        Unsigned x;
        for (int i = 0; i < kWidth; ++i) x[i] = static_cast<uint32_t>(halves[i]) << 16;
        return reinterpret_cast<Float>(x);
    }
    static void store(float* p, Float x) { std::memcpy(p, &x, sizeof x); }
    static Float set1(float x) { return Float{x, x, x, x}; }
    static Float add(Float a, Float b) { return a + b; }
    static Float multiply(Float a, Float b) { return a * b; }
    static Float multiply_add(Float a, Float b, Float c) {
        return a * b + c;
    }  // two roundings: not every machine can fuse

    static Int load_int(const void* p) {
        Int x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    static Int set1_int(int32_t x) { return Int{x, x, x, x}; }
    static Float to_float(Int x) { return __builtin_convertvector(x, Float); }

    // sum + a.even * b.even + a.odd * b.odd, for the two bfloat16 in each 32 bits.
    static Float dot_bfloat16(Float sum, Int a, Int b) {
        const Unsigned high = Unsigned{} + 0xFFFF0000U;
        sum = reinterpret_cast<Float>(reinterpret_cast<Unsigned>(a) << 16) *
                  reinterpret_cast<Float>(reinterpret_cast<Unsigned>(b) << 16) +
              sum;
        return reinterpret_cast<Float>(reinterpret_cast<Unsigned>(a) & high) *
                   reinterpret_cast<Float>(reinterpret_cast<Unsigned>(b) & high) +
               sum;
    }

    // sum + the four products of bytes in each 32 bits.
    static constexpr uint8_t kInt8WeightXor = 0;
    static Int dot_int8(Int sum, Int weights, Int x) {
        sum += byte<0>(weights) * byte<0>(x);
        sum += byte<1>(weights) * byte<1>(x);
        sum += byte<2>(weights) * byte<2>(x);
        return sum + byte<3>(weights) * byte<3>(x);
    }

    static Int low_nibbles(Int x) { return x & (Int{} + 0x0F0F0F0F); }
    static Int high_nibbles(Int x) { return low_nibbles(reinterpret_cast<Int>(reinterpret_cast<Unsigned>(x) >> 4)); }

    // The same of two vectors whose weights are from 0 to 15.
    static Int dot_nibbles(Int sum, Int low, Int high, Int x_low, Int x_high) {
        return dot_int8(dot_int8(sum, low, x_low), high, x_high);
    }

    // ---- Of attention: as in simd_avx512.h ----
    static constexpr int kAttentionRows = 2, kAttentionPanels = 1;

    static Float max(Float a, Float b) { return a > b ? a : b; }
    static Float max_lanes(Float x) {
        x = max(x, Float{x[2], x[3], x[0], x[1]});
        return max(x, Float{x[1], x[0], x[3], x[2]});
    }
    static float first(Float x) { return x[0]; }
    static Float exp2(Float x) { return Float{exp2_of(x[0]), exp2_of(x[1]), exp2_of(x[2]), exp2_of(x[3])}; }
    static void store_bfloat16(void* p, Float x) {
        const uint16_t halves[kWidth] = {bfloat16_of(x[0]), bfloat16_of(x[1]), bfloat16_of(x[2]), bfloat16_of(x[3])};
        std::memcpy(p, halves, sizeof halves);
    }
    static void store_bytes(void* p, Float x) {
        // 2^23 and a half: rounds to an integer in the low bits
        const Unsigned bits = reinterpret_cast<Unsigned>(x + 12582912.0F);
        for (int i = 0; i < kWidth; ++i) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(bits[i]);
    }
    static Int dot_keys(Int sum, Int keys, Int query) { return dot_int8(sum, keys, query); }
    static Int dot_unsigned(Int sum, Int x, Int weights) {
        sum += unsigned_byte<0>(x) * byte<0>(weights);
        sum += unsigned_byte<1>(x) * byte<1>(weights);
        sum += unsigned_byte<2>(x) * byte<2>(weights);
        return sum + unsigned_byte<3>(x) * byte<3>(weights);
    }

private:
    // Byte i of each lane, with its sign.
    template <int i>
    static Int byte(Int x) {
        return reinterpret_cast<Int>(reinterpret_cast<Unsigned>(x) << (24 - 8 * i)) >> 24;
    }
    template <int i>
    static Int unsigned_byte(Int x) {
        return reinterpret_cast<Int>((reinterpret_cast<Unsigned>(x) >> (8 * i)) & 255U);
    }
};

}  // namespace
}  // namespace musespark

#include "kernel_templates.h"

namespace musespark {
const Kernels& kernels_portable() {
    static constexpr Kernels table = make_kernels("portable");
    return table;
}
}  // namespace musespark
