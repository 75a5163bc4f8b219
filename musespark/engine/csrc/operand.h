// Rows prepared for a matrix product, and the loops over rows and products, split over the threads.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "thread_pool.h"
#include "weights.h"

namespace musespark {

// What the parts of the network compute with.
struct Machine {
    const Kernels& kernels;
    ThreadPool& pool;
};

// work(row) for every row. `row_cost` is about the number of floats that a row touches: cheap rows go in larger
// portions, and all on the calling thread where sharing would cost more than it saves.
template <class Work>
void for_rows(const Machine& machine, int64_t rows, int64_t row_cost, const Work& work) {
    constexpr int64_t kPortion = 8192;  // floats; one to three microseconds
    const int64_t portion = row_cost >= kPortion ? 1 : kPortion / (row_cost > 0 ? row_cost : 1);
    machine.pool.run(divide_up(rows, portion), [&](int64_t task, int) {
        const int64_t end = (task + 1) * portion < rows ? (task + 1) * portion : rows;
        for (int64_t row = task * portion; row < end; ++row) work(row);
    });
}

// Rows in the format that a PackedMatrix multiplies. float32 rows are used where they are; the others are converted.
class Operand {
public:
    // Room for `rows` rows as inputs of matrices in this format and depth.
    void shape_for(const PackedMatrix& matrix, int64_t rows);

    // Whether rows prepared for one matrix can be multiplied by another: with int4, matrices may differ in format.
    bool fits(const PackedMatrix& matrix) const;

    // Convert row `index` from `in` floats. Rows may be prepared by several threads at once.
    void prepare(const Kernels& kernels, int64_t index, const float* x, int64_t n);

    const void* row(int64_t index) const { return rows_.data() + index * row_bytes_; }

private:
    Format format_ = Format::float32;
    int64_t depth_ = 0;
    int64_t row_group_size_ = 1;
    int64_t row_bytes_ = 0;
    Scratch<std::byte> rows_;
};

// What happens to each output after its product.
struct Epilogue {
    const float* bias = nullptr;
    bool gelu = false;
    float soft_cap = 0.0F;    // 0: none
    float multiplier = 1.0F;  // of the soft cap
};

// out (rows, matrix.out) = operand rows [0, rows) times one matrix, row r at out + r * out_stride. Several products that
// need nothing of each other: Products.
void multiply(const Machine& machine, const PackedMatrix& matrix, const Operand& operand, int64_t rows, float* out,
              int64_t out_stride, const Epilogue& epilogue = {});

// Rows per task of a product: a multiple of every kernel's tile of rows.
constexpr int64_t kRowBlock = 48;

// Part of a product: `rows` are pointers to prepared rows, panels [first, first + count) of one matrix,
// clipped.
GemmBlock block_of(const PackedMatrix& matrix, int64_t index, const void* const* rows, int64_t num_rows,
                   int64_t first_panel, int64_t num_panels, float* out, int64_t out_stride);

}  // namespace musespark
