// Matrix products: T rows by P panels in registers, for each format of weights. Included by kernel_templates.h only.
// `ahead` is how many bytes further on lies what is read next: each line of weights asks for the one there. Panels are
// short for the processor's own prefetching, which starts anew with each of them.
#pragma once

namespace musespark {
namespace {

template <int P>
inline void prefetch_step(const std::byte* step, int64_t panel_bytes, int64_t ahead) {
    MUSESPARK_UNROLL
    for (int i = 0; i < P; ++i) __builtin_prefetch(step + i * panel_bytes + ahead, 0, 2);
}

template <int P>
inline void prefetch_to_write(const float* start, int64_t columns) {
    MUSESPARK_UNROLL
    for (int i = 0; i < P; ++i) {
        if (i * kPanel < columns) __builtin_prefetch(start + i * kPanel, 1, 3);
    }
}

struct Float32Tile {
    static constexpr Format kFormat = Format::float32;

    template <int T, int P>
    static void multiply(Float (&sum)[T][P * kVectors], const void* const* rows, const std::byte* panels,
                         const GemmBlock& b, int64_t) {
        for (int64_t k = 0; k < b.depth; ++k) {
            Float w[P * kVectors];
            MUSESPARK_UNROLL
            for (int i = 0; i < P * kVectors; ++i) {
                const auto* panel = reinterpret_cast<const float*>(panels + i / kVectors * b.panel_bytes);
                w[i] = Simd::load(panel + k * kPanel + i % kVectors * kWidth);
            }
            MUSESPARK_UNROLL
            for (int t = 0; t < T; ++t) {
                const Float x = Simd::set1(static_cast<const float*>(rows[t])[k]);
                MUSESPARK_UNROLL
                for (int i = 0; i < P * kVectors; ++i) sum[t][i] = Simd::multiply_add(x, w[i], sum[t][i]);
            }
        }
    }
};

struct Bfloat16Tile {
    static constexpr Format kFormat = Format::bfloat16;

    template <int T, int P>
    static void multiply(Float (&sum)[T][P * kVectors], const void* const* rows, const std::byte* panels,
                         const GemmBlock& b, int64_t ahead) {
        for (int64_t k = 0; k < b.depth / 2; ++k) {
            prefetch_step<P>(panels + k * kStepBytes, b.panel_bytes, ahead);
            Int w[P * kVectors];
            MUSESPARK_UNROLL
            for (int i = 0; i < P * kVectors; ++i) {
                w[i] = Simd::load_int(panels + i / kVectors * b.panel_bytes + (k * kPanel + i % kVectors * kWidth) * 4);
            }
            MUSESPARK_UNROLL
            for (int t = 0; t < T; ++t) {
                const Int x = broadcast_word(static_cast<const std::byte*>(rows[t]) + k * 4);
                MUSESPARK_UNROLL
                for (int i = 0; i < P * kVectors; ++i) sum[t][i] = Simd::dot_bfloat16(sum[t][i], w[i], x);
            }
        }
    }
};

// A step of int8 weights: four inputs of 16 outputs.
struct Int8Step {
    static constexpr Format kFormat = Format::int8;
    static constexpr int64_t kInputs = 4;
    static constexpr int32_t kAdded = Simd::kInt8WeightXor;  // to every stored weight

    Int weights;

    static Int8Step load(const std::byte* step) { return {Simd::load_int(step)}; }

    struct Row {
        Int x;
        explicit Row(const std::byte* row) : x(broadcast_word(row)) {}
    };
    Int add_products(Int dot, const Row& row) const { return Simd::dot_int8(dot, weights, row.x); }
};

// A step of int4 weights: eight inputs of 16 outputs, taken apart in registers.
struct Int4Step {
    static constexpr Format kFormat = Format::int4;
    static constexpr int64_t kInputs = 8;
    static constexpr int32_t kAdded = 8;

    Int low, high;

    static Int4Step load(const std::byte* step) {
        const Int both = Simd::load_int(step);
        return {Simd::low_nibbles(both), Simd::high_nibbles(both)};
    }

    struct Row {
        Int first, second;
        explicit Row(const std::byte* row) : first(broadcast_word(row)), second(broadcast_word(row + 4)) {}
    };
    Int add_products(Int dot, const Row& row) const { return Simd::dot_nibbles(dot, low, high, row.first, row.second); }
};

// Dot products of a group are exact integers. They are scaled and added in separate roundings, never in a fused one, so
// that every instruction set gives the same bits.
template <class Step>
struct IntegerTile {
    static constexpr Format kFormat = Step::kFormat;

    template <int T, int P>
    static void multiply(Float (&sum)[T][P * kVectors], const void* const* rows, const std::byte* panels,
                         const GemmBlock& b, int64_t ahead) {
        const std::byte* scales = panels + b.depth / Step::kInputs * kStepBytes;
        const int64_t scales_bytes = kPanel * static_cast<int64_t>(b.wide_scales ? sizeof(float) : sizeof(uint16_t));
        int64_t row_groups_end = b.depth;  // where the next RowGroup of a row is
        for (int64_t group = 0; group < b.depth; group += b.group_size) {
            for (int64_t start = group; start < group + b.group_size; start += b.row_group_size) {
                Int dot[T][P * kVectors];
                float row_scale[T];
                MUSESPARK_UNROLL
                for (int t = 0; t < T; ++t) {
                    RowGroup row_group;
                    std::memcpy(&row_group, static_cast<const std::byte*>(rows[t]) + row_groups_end, sizeof row_group);
                    row_scale[t] = row_group.scale;
                    MUSESPARK_UNROLL
                    for (int i = 0; i < P * kVectors; ++i) dot[t][i] = Simd::set1_int(-Step::kAdded * row_group.sum);
                }
                row_groups_end += sizeof(RowGroup);
                for (int64_t k = start; k < start + b.row_group_size; k += Step::kInputs) {
                    const std::byte* step = panels + k / Step::kInputs * kStepBytes;
                    prefetch_step<P>(step, b.panel_bytes, ahead);
                    multiply_step<T, P>(dot, rows, step, k, b.panel_bytes);
                }
                MUSESPARK_UNROLL
                for (int i = 0; i < P * kVectors; ++i) {
                    const Float scale = load_scales(scales + i / kVectors * b.panel_bytes, i % kVectors, b.wide_scales);
                    MUSESPARK_UNROLL
                    for (int t = 0; t < T; ++t) {
                        const Float both = Simd::multiply(scale, Simd::set1(row_scale[t]));
                        sum[t][i] = Simd::add(Simd::multiply(Simd::to_float(dot[t][i]), both), sum[t][i]);
                    }
                }
            }
            scales += scales_bytes;
        }
    }

private:
    template <int T, int P>
    static void multiply_step(Int (&dot)[T][P * kVectors], const void* const* rows, const std::byte* step, int64_t k,
                              int64_t panel_bytes) {
        const auto load = [&](int i) { return Step::load(step + i / kVectors * panel_bytes + i % kVectors * kWidth * 4); };
        const auto row = [&](int t) { return typename Step::Row(static_cast<const std::byte*>(rows[t]) + k); };
        if constexpr (T == 1) {
            const auto x = row(0);
            MUSESPARK_UNROLL
            for (int i = 0; i < P * kVectors; ++i) dot[0][i] = load(i).add_products(dot[0][i], x);
        } else {
            Step w[P * kVectors];
            MUSESPARK_UNROLL
            for (int i = 0; i < P * kVectors; ++i) w[i] = load(i);
            MUSESPARK_UNROLL
            for (int t = 0; t < T; ++t) {
                const auto x = row(t);
                MUSESPARK_UNROLL
                for (int i = 0; i < P * kVectors; ++i) dot[t][i] = w[i].add_products(dot[t][i], x);
            }
        }
    }

    static Float load_scales(const std::byte* scales, int vector, bool wide) {
        if (wide) return Simd::load(reinterpret_cast<const float*>(scales) + vector * kWidth);
        return Simd::load_bfloat16(scales + vector * kWidth * static_cast<int64_t>(sizeof(uint16_t)));
    }
};

// Columns [0, columns) of T rows; a last panel that is not full goes through a buffer.
template <class Tile, int T, int P>
void run_tile(const GemmBlock& b, int64_t row, int64_t panel) {
    constexpr int64_t kColumns = P * kPanel;
    const int64_t left = b.num_columns - panel * kPanel;
    const int64_t columns = left < kColumns ? left : kColumns;
    float* out = b.out + row * b.out_stride + panel * kPanel;
    float edge[T][kColumns];
    const bool whole = columns == kColumns;

    Float sum[T][P * kVectors];
    MUSESPARK_UNROLL
    for (int t = 0; t < T; ++t) {
        const float* start = out + t * b.out_stride;
        if (b.accumulate && !whole) {
            for (int64_t c = 0; c < columns; ++c) edge[t][c] = start[c];
            for (int64_t c = columns; c < kColumns; ++c) edge[t][c] = 0.0F;
            start = edge[t];
        }
        MUSESPARK_UNROLL
        for (int i = 0; i < P * kVectors; ++i) sum[t][i] = b.accumulate ? Simd::load(start + i * kWidth) : Simd::zero();
        // Outputs of many rows are not in the cache, and a store that has to wait for its line holds up those after it.
        if (!b.accumulate) prefetch_to_write<P>(start, columns);
    }
    // The first rows bring the panels after these, for the others they are there.
    const int64_t ahead = row == 0 ? P * b.panel_bytes : 0;
    Tile::template multiply<T, P>(sum, b.rows + row, b.panels + panel * b.panel_bytes, b, ahead);
    MUSESPARK_UNROLL
    for (int t = 0; t < T; ++t) {
        float* end = whole ? out + t * b.out_stride : edge[t];
        MUSESPARK_UNROLL
        for (int i = 0; i < P * kVectors; ++i) Simd::store(end + i * kWidth, sum[t][i]);
        if (!whole) std::memcpy(out + t * b.out_stride, edge[t], static_cast<size_t>(columns) * sizeof(float));
    }
}

// Turn the number of rows that are left into a template argument.
template <class Tile, int T, int P>
void run_tile_of(int64_t num_rows, const GemmBlock& b, int64_t row, int64_t panel) {
    if constexpr (T > 0) {
        if (num_rows >= T) {
            run_tile<Tile, T, P>(b, row, panel);
        } else {
            run_tile_of<Tile, T - 1, P>(num_rows, b, row, panel);
        }
    }
}

// Panels in steps of P, smaller at the end; under each step all rows, so that a step's weights stay in the first cache.
template <class Tile, int T, int P>
void run_panels(const GemmBlock& b, int64_t panel) {
    for (; panel + P <= b.num_panels; panel += P) {
        for (int64_t row = 0; row < b.num_rows; row += T) run_tile_of<Tile, T, P>(b.num_rows - row, b, row, panel);
    }
    if constexpr (P > 1) {
        if (panel < b.num_panels) run_panels<Tile, T, P / 2>(b, panel);
    }
}

template <class Tile>
void gemm(const GemmBlock& b) {
    constexpr int kFormat = static_cast<int>(Tile::kFormat);
    if (b.num_rows == 1) {
        run_panels<Tile, 1, Simd::kNarrowPanels>(b, 0);
    } else {
        run_panels<Tile, Simd::kTileRows[kFormat], Simd::kTilePanels[kFormat]>(b, 0);
    }
}

}  // namespace
}  // namespace musespark
