// Attention of a block of rows to one page of keys and values: scores, a step of online softmax, and weighted values in
// one pass over a few rows at a time, so that the page stays in the first cache and scores never leave it. Included by
// kernel_templates.h only.
#pragma once

namespace musespark {
namespace {

constexpr int kPageVectors = static_cast<int>(kPageTokens) / kWidth;

// One row's softmax over a page. `score` are in units of log2 but for the factor `unit`.
struct PageSoftmax {
    Float weight[kPageVectors];
    Float factor;  // for what was summed up before
};

// Which of the 64 keys a row sees: all, or [low, high).
struct Seen {
    int64_t low, high;
    bool all() const { return low == 0 && high == kPageTokens; }
    // Outside, `other` instead.
    void mask(Float (&x)[kPageVectors], float other) const {
        float values[kPageTokens];
        for (int i = 0; i < kPageVectors; ++i) Simd::store(values + i * kWidth, x[i]);
        for (int64_t i = 0; i < low; ++i) values[i] = other;
        for (int64_t i = high; i < kPageTokens; ++i) values[i] = other;
        for (int i = 0; i < kPageVectors; ++i) x[i] = Simd::load(values + i * kWidth);
    }
};

// The largest of all values in every lane, pairwise so that the chain is short.
inline Float page_maximum(const Float (&x)[kPageVectors]) {
    Float most[kPageVectors];
    for (int i = 0; i < kPageVectors; ++i) most[i] = x[i];
    for (int half = kPageVectors / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) most[i] = Simd::max(most[i], most[i + half]);
    }
    return Simd::max_lanes(most[0]);
}

inline PageSoftmax page_softmax(const Float (&score)[kPageVectors], float unit, const Seen& seen, float* maximum,
                                float* sum) {
    PageSoftmax result;
    const Float scale = Simd::set1(unit), before = Simd::set1(*maximum);
    const Float most = Simd::max(Simd::multiply(page_maximum(score), scale), before);
    const Float least = Simd::multiply(most, Simd::set1(-1.0F));
    for (int i = 0; i < kPageVectors; ++i) {
        result.weight[i] = Simd::exp2(Simd::multiply_add(score[i], scale, least));
    }
    if (!seen.all()) seen.mask(result.weight, 0.0F);
    result.factor = Simd::exp2(Simd::add(before, least));
    *maximum = Simd::first(most);
    // The sum is kept in 16 lanes, whatever the width of a vector is.
    for (int lane = 0; lane < kVectors; ++lane) {
        Float total = Simd::multiply(Simd::load(sum + lane * kWidth), result.factor);
        for (int i = lane; i < kPageVectors; i += kVectors) total = Simd::add(total, result.weight[i]);
        Simd::store(sum + lane * kWidth, total);
    }
    return result;
}

// ---- How keys, values, queries and weights are multiplied, by format ----

struct Float32Page {
    static constexpr Format kFormat = Format::float32;
    static constexpr int64_t kInputs = 1;  // in 32 bits
    using Sum = Float;

    static Sum key_step(Sum sum, Int keys, Int query) { return value_step(sum, keys, query); }
    static Sum value_step(Sum sum, Int values, Int weight) {
        return Simd::multiply_add(reinterpret_cast<Float>(weight), reinterpret_cast<Float>(values), sum);
    }
    static void store_weights(const PageSoftmax& softmax, std::byte* row) {
        for (int i = 0; i < kPageVectors; ++i) {
            Simd::store(reinterpret_cast<float*>(row) + i * kWidth, softmax.weight[i]);
        }
    }
};

struct Bfloat16Page {
    static constexpr Format kFormat = Format::bfloat16;
    static constexpr int64_t kInputs = 2;
    using Sum = Float;

    static Sum key_step(Sum sum, Int keys, Int query) { return Simd::dot_bfloat16(sum, keys, query); }
    static Sum value_step(Sum sum, Int values, Int weight) { return Simd::dot_bfloat16(sum, values, weight); }
    static void store_weights(const PageSoftmax& softmax, std::byte* row) {
        for (int i = 0; i < kPageVectors; ++i) Simd::store_bfloat16(row + i * kWidth * 2, softmax.weight[i]);
    }
};

// Each key and each value has a scale of its own (kv_pages.h). That of a value goes into its weight; the products are
// rounded to 255 steps of the largest in the page, for a step of the whole row would lose all pages but a few.
struct Int8Page {
    static constexpr Format kFormat = Format::int8;
    static constexpr int64_t kInputs = 4;
    using Sum = Int;

    static Sum key_step(Sum sum, Int keys, Int query) { return Simd::dot_keys(sum, keys, query); }
    static Sum value_step(Sum sum, Int values, Int weight) { return Simd::dot_unsigned(sum, weight, values); }
    // Returns the size of a step.
    static float store_weights(const PageSoftmax& softmax, const float* scales, const Seen& seen, std::byte* row) {
        Float scaled[kPageVectors];
        for (int i = 0; i < kPageVectors; ++i) {
            scaled[i] = Simd::multiply(softmax.weight[i], Simd::load(scales + i * kWidth));
        }
        if (!seen.all()) seen.mask(scaled, 0.0F);  // a later token's scale may be NaN
        const float most = Simd::first(Simd::max(page_maximum(scaled), Simd::set1(1e-30F)));
        const Float inverse = Simd::set1(255.0F / most);
        for (int i = 0; i < kPageVectors; ++i) {
            Simd::store_bytes(row + i * kWidth, Simd::multiply(scaled[i], inverse));
        }
        return most / 255.0F;
    }
};

// ---- A tile of rows ----

// sum += rows times panels, over `words` of 32 bits of each row. `ahead` is the distance to memory that is needed next.
template <int T, int P, bool kAhead, class Step, class Sum>
inline void multiply_panels(Sum (&sum)[T][P * kVectors], const std::byte* const (&rows)[T], const std::byte* panels,
                            int64_t panel_bytes, int64_t words, int64_t ahead, const Step& step) {
    for (int64_t k = 0; k < words; ++k) {
        Int w[P * kVectors];
        MUSESPARK_UNROLL
        for (int i = 0; i < P * kVectors; ++i) {
            const std::byte* vector = panels + i / kVectors * panel_bytes + (k * kPanel + i % kVectors * kWidth) * 4;
            w[i] = Simd::load_int(vector);
            if (kAhead && i % kVectors == 0) __builtin_prefetch(vector + ahead, 0, 2);
        }
        MUSESPARK_UNROLL
        for (int t = 0; t < T; ++t) {
            const Int x = broadcast_word(rows[t] + k * 4);
            MUSESPARK_UNROLL
            for (int i = 0; i < P * kVectors; ++i) sum[t][i] = step(sum[t][i], w[i], x);
        }
    }
}

template <class Page>
struct PageLayout {
    int64_t key_words, key_panel_bytes, value_panel_bytes, value_panels, key_bytes, scale_offset;

    explicit PageLayout(int64_t head_dim)
        : key_words((head_dim + Page::kInputs - 1) / Page::kInputs),
          key_panel_bytes(key_words * kStepBytes),
          value_panel_bytes(kPageTokens / Page::kInputs * kStepBytes),
          value_panels((head_dim + kPanel - 1) / kPanel),
          key_bytes(kPageTokens / kPanel * key_panel_bytes),
          scale_offset(key_bytes + value_panels * value_panel_bytes) {}
};

template <class Page, int T>
struct AttentionTile {
    using Sum = typename Page::Sum;
    static constexpr bool kInteger = Page::kFormat == Format::int8;

    const PageBlock& block;
    const PageLayout<Page> layout;
    int64_t row;
    float scores[T][kPageTokens];
    float units[T];  // of the scores
    alignas(64) std::byte weights[T][kPageTokens * 4 / Page::kInputs];
    float factors[T];
    float steps[T];  // of the weights

    AttentionTile(const PageBlock& b, const PageLayout<Page>& l, int64_t first) : block(b), layout(l), row(first) {}

    template <int P, bool kAhead>
    void score() {
        const std::byte* rows[T];
        Sum start[T];
        for (int t = 0; t < T; ++t) {
            rows[t] = static_cast<const std::byte*>(block.queries[row + t].row);
            units[t] = 1.0F;
            if constexpr (kInteger) {
                RowGroup group;
                std::memcpy(&group, rows[t] + layout.key_words * 4, sizeof group);
                units[t] = group.scale;
                start[t] = Simd::set1_int(-Simd::kInt8WeightXor * group.sum);
            } else {
                start[t] = Simd::zero();
            }
        }
        for (int64_t panel = 0; panel < kPageTokens / kPanel; panel += P) {
            Sum sum[T][P * kVectors];
            MUSESPARK_UNROLL
            for (int t = 0; t < T; ++t) {
                MUSESPARK_UNROLL
                for (int i = 0; i < P * kVectors; ++i) sum[t][i] = start[t];
            }
            multiply_panels<T, P, kAhead>(sum, rows, block.page + panel * layout.key_panel_bytes,
                                          layout.key_panel_bytes, layout.key_words, block.ahead, Page::key_step);
            MUSESPARK_UNROLL
            for (int i = 0; i < P * kVectors; ++i) {
                const int64_t token = panel * kPanel + i * kWidth;
                MUSESPARK_UNROLL
                for (int t = 0; t < T; ++t) {
                    if constexpr (kInteger) {
                        const auto* scales = reinterpret_cast<const float*>(block.page + layout.scale_offset);
                        Simd::store(scores[t] + token,
                                    Simd::multiply(Simd::to_float(sum[t][i]), Simd::load(scales + token)));
                    } else {
                        Simd::store(scores[t] + token, sum[t][i]);
                    }
                }
            }
        }
    }

    void weigh() {
        for (int t = 0; t < T; ++t) {
            const PageQuery& query = block.queries[row + t];
            const Seen seen = {query.low, query.high};
            Float score[kPageVectors];
            for (int i = 0; i < kPageVectors; ++i) score[i] = Simd::load(scores[t] + i * kWidth);
            if (!seen.all()) seen.mask(score, -__builtin_inff());
            const PageSoftmax softmax = page_softmax(score, units[t], seen, &block.maxima[row + t],
                                                     block.sums + (row + t) * kPanel);
            if constexpr (kInteger) {
                const auto* scales = reinterpret_cast<const float*>(block.page + layout.scale_offset);
                steps[t] = Page::store_weights(softmax, scales + kPageTokens, seen, weights[t]);
            } else {
                Page::store_weights(softmax, weights[t]);
            }
            factors[t] = Simd::first(softmax.factor);
        }
    }

    template <int P, bool kAhead>
    void add_values(int64_t panel) {
        const int64_t width = layout.value_panels * kPanel;
        const std::byte* rows[T];
        for (int t = 0; t < T; ++t) rows[t] = weights[t];
        for (; panel + P <= layout.value_panels; panel += P) {
            float* out = block.weighted + row * width + panel * kPanel;
            Sum sum[T][P * kVectors];
            MUSESPARK_UNROLL
            for (int t = 0; t < T; ++t) {
                MUSESPARK_UNROLL
                for (int i = 0; i < P * kVectors; ++i) {
                    if constexpr (kInteger) {
                        sum[t][i] = Simd::set1_int(0);
                    } else {
                        sum[t][i] = Simd::multiply(Simd::load(out + t * width + i * kWidth), Simd::set1(factors[t]));
                    }
                }
            }
            multiply_panels<T, P, kAhead>(sum, rows, block.page + layout.key_bytes + panel * layout.value_panel_bytes,
                                          layout.value_panel_bytes, kPageTokens / Page::kInputs, block.ahead,
                                          Page::value_step);
            MUSESPARK_UNROLL
            for (int t = 0; t < T; ++t) {
                MUSESPARK_UNROLL
                for (int i = 0; i < P * kVectors; ++i) {
                    float* at = out + t * width + i * kWidth;
                    if constexpr (kInteger) {
                        const Float before = Simd::multiply(Simd::load(at), Simd::set1(factors[t]));
                        Simd::store(at, Simd::multiply_add(Simd::to_float(sum[t][i]), Simd::set1(steps[t]), before));
                    } else {
                        Simd::store(at, sum[t][i]);
                    }
                }
            }
        }
        if constexpr (P > 1) {
            if (panel < layout.value_panels) add_values<P / 2, kAhead>(panel);
        }
    }

    // Few rows take more panels at once, so that enough chains are in flight.
    template <bool kAhead>
    void run() {
        constexpr int kPanels = T * 2 <= Simd::kAttentionRows ? Simd::kAttentionPanels * 2 : Simd::kAttentionPanels;
        score<kPanels, kAhead>();
        weigh();
        add_values<kPanels, kAhead>(0);
    }
};

template <class Page, int T>
void attend_rows(const PageBlock& block, const PageLayout<Page>& layout, int64_t row) {
    if constexpr (T > 0) {
        if (block.num_rows - row < T) return attend_rows<Page, T - 1>(block, layout, row);
        AttentionTile<Page, T> tile(block, layout, row);
        // The first rows ask for the next page, one line for each that they read.
        if (row == 0 && block.ahead != 0) {
            tile.template run<true>();
        } else {
            tile.template run<false>();
        }
    }
}

template <class Page>
void attend_page(const PageBlock& block) {
    const PageLayout<Page> layout(block.head_dim);
    for (int64_t row = 0; row < block.num_rows; row += Simd::kAttentionRows) {
        attend_rows<Page, Simd::kAttentionRows>(block, layout, row);
    }
}

}  // namespace
}  // namespace musespark
