// What happens to single rows: conversion to operands, norms, functions of each element. Included by kernel_templates.h
// only.
#pragma once

namespace musespark {
namespace {

// ---- Rows as operands ----

void to_bfloat16(const float* x, int64_t n, uint16_t* row, int64_t depth) {
    for (int64_t i = 0; i < n; ++i) row[i] = bfloat16_of(x[i]);
    for (int64_t i = n; i < depth; ++i) row[i] = 0;
}

// Round to the nearest integer, |x| < 2^22; anything for NaN.
inline int32_t nearest(float x) { return static_cast<int32_t>(to_bits(x + 12582912.0F) - to_bits(12582912.0F)); }

void to_int8(const float* x, int64_t n, std::byte* row, int64_t depth, int64_t group_size) {
    auto* values = reinterpret_cast<int8_t*>(row);
    for (int64_t start = 0; start < depth; start += group_size) {
        const int64_t count = n <= start ? 0 : (n - start < group_size ? n - start : group_size);
        // As integers, the bits of |x| are ordered like |x|, and NaN is the largest: it comes through to the product.
        uint32_t largest = 0;
        for (int64_t i = 0; i < count; ++i) {
            const uint32_t bits = to_bits(x[start + i]) & 0x7FFFFFFFU;
            largest = bits > largest ? bits : largest;
        }
        const float maximum = from_bits(largest);
        const float inverse = maximum > 1e-30F && maximum < 3e38F ? 127.0F / maximum : 0.0F;
        int32_t sum = 0;
        for (int64_t i = 0; i < count; ++i) {
            const auto value = static_cast<int8_t>(nearest(x[start + i] * inverse));
            values[start + i] = value;
            sum += value;
        }
        for (int64_t i = count; i < group_size; ++i) values[start + i] = 0;
        const RowGroup group = {maximum / 127.0F, sum};
        std::memcpy(row + depth + start / group_size * static_cast<int64_t>(sizeof group), &group, sizeof group);
    }
}

// ---- Norms: sums run in 16 lanes that are added up in a fixed tree ----

struct Lanes {
    Float lane[kVectors];

    Lanes() {
        for (Float& x : lane) x = Simd::zero();
    }
    float total() const {
        float sum[kPanel];
        for (int i = 0; i < kVectors; ++i) Simd::store(sum + i * kWidth, lane[i]);
        for (int64_t half = kPanel / 2; half > 0; half /= 2) {
            for (int64_t i = 0; i < half; ++i) sum[i] += sum[i + half];
        }
        return sum[0];
    }
};

// Sum of term(16 values of each input), over n values; the last few are filled up with zeros, where `term` must be
// zero.
template <class Term, class... Inputs>
float sum_of(int64_t n, const Term& term, const Inputs*... inputs) {
    Lanes sum;
    int64_t i = 0;
    for (; i + kPanel <= n; i += kPanel) {
        for (int v = 0; v < kVectors; ++v)
            sum.lane[v] = Simd::add(sum.lane[v], term(Simd::load(inputs + i + v * kWidth)...));
    }
    if (i < n) {
        const auto padded = [&](const float* x) {
            Lanes last;
            float tail[kPanel] = {};
            for (int64_t j = 0; j < kPanel && i + j < n; ++j) tail[j] = x[i + j];
            for (int v = 0; v < kVectors; ++v) last.lane[v] = Simd::load(tail + v * kWidth);
            return last;
        };
        const auto add_tail = [&](const auto&... last) {
            for (int v = 0; v < kVectors; ++v) sum.lane[v] = Simd::add(sum.lane[v], term(last.lane[v]...));
        };
        add_tail(padded(inputs)...);
    }
    return sum.total();
}

inline Float square(Float x) { return Simd::multiply(x, x); }

inline float inverse_root(float sum_of_squares, int64_t n, float eps) {
    return 1.0F / __builtin_sqrtf(sum_of_squares / static_cast<float>(n) + eps);
}

void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* y) {
    const float factor = inverse_root(sum_of(n, square, x), n, eps);
    if (weight) {
        MUSESPARK_ELEMENTWISE
        for (int64_t i = 0; i < n; ++i) y[i] = x[i] * factor * weight[i];
    } else {
        MUSESPARK_ELEMENTWISE
        for (int64_t i = 0; i < n; ++i) y[i] = x[i] * factor;
    }
}

void input_scaled_norm(const float* x, const float* weight, int64_t n, float eps, float* y) {
    const auto scaled_square = [](Float a, Float w) { return square(Simd::multiply(a, w)); };
    const float factor = inverse_root(sum_of(n, scaled_square, x, weight), n, eps);
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] * weight[i] * factor;
}

void layer_norm(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* y) {
    const float mean = sum_of(
                           n, [](Float a) { return a; }, x) /
                       static_cast<float>(n);
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] - mean;
    const float factor = inverse_root(sum_of(n, square, y), n, eps);
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) y[i] = y[i] * factor * weight[i] + bias[i];
}

// ---- Element by element ----

void residual_gate(float* residual, const float* alpha, const float* beta, const float* branch, int64_t n) {
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) residual[i] = alpha[i] * residual[i] + beta[i] * branch[i];
}

void add(float* y, const float* x, int64_t n) {
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

void add_scaled(float* y, const float* x, float factor, int64_t n) {
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

void add_compensated(float* sum, float* lost, const float* x, int64_t n) {
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) {
        const float wanted = x[i] - lost[i];
        const float total = sum[i] + wanted;
        lost[i] = (total - sum[i]) - wanted;
        sum[i] = total;
    }
}

void scale(float* y, float factor, int64_t n) {
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) y[i] *= factor;
}

void sigmoid(float* x, int64_t n) {
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) x[i] = sigmoid_of(x[i]);
}

void multiply_by_sigmoid(float* y, const float* x, int64_t n) {
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) y[i] *= sigmoid_of(x[i]);
}

void silu_multiply(const float* gate, const float* up, int64_t n, float* y) {
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) y[i] = gate[i] * sigmoid_of(gate[i]) * up[i];
}

void gelu(float* x, int64_t n) {
    constexpr float kRootHalf = 0.70710678118654752F;
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) x[i] = 0.5F * x[i] * (1.0F + erf_of(x[i] * kRootHalf));
}

void soft_cap(float* x, int64_t n, float multiplier, float cap) {
    const float factor = multiplier / cap;
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < n; ++i) x[i] = cap * tanh_of(x[i] * factor);
}

void rotate(float* x, const float* cosine, const float* sine, int64_t half) {
    float* second = x + half;
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < half; ++i) {
        const float a = x[i], b = second[i];
        x[i] = a * cosine[i] - b * sine[i];
        second[i] = b * cosine[i] + a * sine[i];
    }
}

void rotate_neighbours(float* x, const float* cosine, const float* sine, int64_t half) {
    MUSESPARK_ELEMENTWISE
    for (int64_t i = 0; i < half; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosine[i] - b * sine[i];
        x[2 * i + 1] = b * cosine[i] + a * sine[i];
    }
}

}  // namespace
}  // namespace musespark
