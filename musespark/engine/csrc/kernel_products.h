// Matrix products: T rows by P panels in registers, for each format of weights. Included by kernel_templates.h only.
#pragma once

namespace musespark {
namespace {

struct Float32Tile {
    static constexpr Format kFormat = Format::float32;

    template <int T, int P>
    static void multiply(Float (&sum)[T][P * kVectors], const void* const* rows, const std::byte* panels,
                         const GemmBlock& b) {
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
                         const GemmBlock& b) {
        for (int64_t k = 0; k < b.depth / 2; ++k) {
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

struct Int8Tile {
    static constexpr Format kFormat = Format::int8;

    template <int T, int P>
    static void multiply(Float (&sum)[T][P * kVectors], const void* const* rows, const std::byte* panels,
                         const GemmBlock& b) {
        const int64_t num_groups = b.depth / b.group_size;
        for (int64_t group = 0; group < num_groups; ++group) {
            RowGroup row_group[T];
            Int dot[T][P * kVectors];
            MUSESPARK_UNROLL
            for (int t = 0; t < T; ++t) {
                std::memcpy(&row_group[t], static_cast<const std::byte*>(rows[t]) + b.depth + group * sizeof(RowGroup),
                            sizeof(RowGroup));
                MUSESPARK_UNROLL
                for (int i = 0; i < P * kVectors; ++i) dot[t][i] = Simd::set1_int(row_group[t].offset);
            }
            for (int64_t k = 0; k < b.group_size; k += 4) {
                Int w[P * kVectors];
                MUSESPARK_UNROLL
                for (int i = 0; i < P * kVectors; ++i) {
                    w[i] =
                        Simd::load_int(panels + i / kVectors * b.panel_bytes + k * kPanel + i % kVectors * kWidth * 4);
                }
                MUSESPARK_UNROLL
                for (int t = 0; t < T; ++t) {
                    const Int x = broadcast_word(static_cast<const std::byte*>(rows[t]) + group * b.group_size + k);
                    MUSESPARK_UNROLL
                    for (int i = 0; i < P * kVectors; ++i) dot[t][i] = Simd::dot_int8(dot[t][i], w[i], x);
                }
            }
            MUSESPARK_UNROLL
            for (int i = 0; i < P * kVectors; ++i) {
                const auto* scales =
                    reinterpret_cast<const float*>(panels + i / kVectors * b.panel_bytes + b.group_size * kPanel);
                const Float scale = Simd::load(scales + i % kVectors * kWidth);
                MUSESPARK_UNROLL
                for (int t = 0; t < T; ++t) {
                    const Float both = Simd::multiply(scale, Simd::set1(row_group[t].scale));
                    sum[t][i] = Simd::multiply_add(Simd::to_float(dot[t][i]), both, sum[t][i]);
                }
            }
            panels += b.group_size * kPanel + kPanel * sizeof(float);
        }
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
    }
    Tile::template multiply<T, P>(sum, b.rows + row, b.panels + panel * b.panel_bytes, b);
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
