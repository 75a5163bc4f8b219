// Any machine: vectors of 4 floats in the compiler's own vector types (SSE2 on x86, NEON on ARM, or plain code).
#include <cstdint>
#include <cstring>

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

private:
    // Byte i of each lane, with its sign.
    template <int i>
    static Int byte(Int x) {
        return reinterpret_cast<Int>(reinterpret_cast<Unsigned>(x) << (24 - 8 * i)) >> 24;
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
