#include "operand.h"

#include <algorithm>
#include <stdexcept>

namespace musespark {

namespace {

// Multiplications in one task: about two microseconds of a core, ten times what claiming a task costs.
constexpr int64_t kTaskProducts = 1 << 16;

}  // namespace

void Operand::shape_for(const PackedMatrix& matrix, int64_t rows) {
    format_ = matrix.format;
    depth_ = matrix.depth;
    row_group_size_ = matrix.row_group_size;
    int64_t bytes = 0;
    switch (format_) {
        case Format::float32:
            bytes = depth_ * static_cast<int64_t>(sizeof(float));
            break;
        case Format::bfloat16:
            bytes = depth_ * static_cast<int64_t>(sizeof(uint16_t));
            break;
        case Format::int8:
        case Format::int4:
            bytes = depth_ + depth_ / row_group_size_ * static_cast<int64_t>(sizeof(RowGroup));
            break;
    }
    row_bytes_ = round_up(bytes, 64);
    rows_.reserve(rows, row_bytes_);
}

bool Operand::fits(const PackedMatrix& matrix) const {
    const auto has_integer_rows = [](Format format) { return format == Format::int8 || format == Format::int4; };
    const bool same_rows = format_ == matrix.format || (has_integer_rows(format_) && has_integer_rows(matrix.format));
    return same_rows && depth_ == matrix.depth && row_group_size_ == matrix.row_group_size;
}

void Operand::prepare(const Kernels& kernels, int64_t index, const float* x, int64_t n) {
    std::byte* row = rows_.data() + index * row_bytes_;
    switch (format_) {
        case Format::float32:
            std::copy_n(x, n, reinterpret_cast<float*>(row));
            break;
        case Format::bfloat16:
            kernels.to_bfloat16(x, n, reinterpret_cast<uint16_t*>(row), depth_);
            break;
        case Format::int8:
        case Format::int4:
            kernels.to_int8(x, n, row, depth_, row_group_size_);
            break;
    }
}

int64_t panels_per_task(const PackedMatrix& matrix, int64_t rows) {
    const int64_t products = std::max<int64_t>(rows * matrix.depth * kPanel, 1);
    return std::min(round_up(divide_up(kTaskProducts, products), 4), matrix.num_panels);
}

GemmBlock block_of(const PackedMatrix& matrix, int64_t index, const void* const* rows, int64_t num_rows,
                   int64_t first_panel, int64_t num_panels, float* out, int64_t out_stride) {
    const int64_t panels = std::min(num_panels, matrix.num_panels - first_panel);
    GemmBlock block = {};
    block.rows = rows;
    block.num_rows = num_rows;
    block.panels = matrix.matrix(index) + first_panel * matrix.panel_bytes;
    block.panel_bytes = matrix.panel_bytes;
    block.num_panels = panels;
    block.num_columns = std::min(panels * kPanel, matrix.out - first_panel * kPanel);
    block.depth = matrix.depth;
    block.row_group_size = matrix.row_group_size;
    block.group_size = matrix.group_size;
    block.wide_scales = matrix.wide_scales;
    block.out = out + first_panel * kPanel;
    block.out_stride = out_stride;
    return block;
}

void multiply(const Machine& machine, const PackedMatrix& matrix, const Operand& operand, int64_t rows, float* out,
              int64_t out_stride, const Epilogue& epilogue) {
    if (!operand.fits(matrix)) throw std::logic_error("rows prepared for another kind of matrix");
    const Kernels& kernels = machine.kernels;
    const int64_t row_blocks = divide_up(rows, kRowBlock);
    const int64_t panels = panels_per_task(matrix, std::min(rows, kRowBlock));
    const int64_t panel_blocks = divide_up(matrix.num_panels, panels);
    const auto gemm = kernels.gemm[static_cast<int>(matrix.format)];
    machine.pool.run(row_blocks * panel_blocks, [&](int64_t task, int) {
        // Row blocks innermost: neighbouring tasks share weights, the larger of the two operands.
        const int64_t first_row = task % row_blocks * kRowBlock;
        const int64_t num_rows = std::min(kRowBlock, rows - first_row);
        const void* pointers[kRowBlock];
        for (int64_t r = 0; r < num_rows; ++r) pointers[r] = operand.row(first_row + r);
        const GemmBlock block = block_of(matrix, 0, pointers, num_rows, task / row_blocks * panels, panels,
                                         out + first_row * out_stride, out_stride);
        gemm(block);
        for (int64_t r = 0; r < num_rows; ++r) {
            float* y = block.out + r * out_stride;
            if (epilogue.bias)
                kernels.add(y, epilogue.bias + (block.out - (out + first_row * out_stride)), block.num_columns);
            if (epilogue.gelu) kernels.gelu(y, block.num_columns);
            if (epilogue.soft_cap > 0.0F)
                kernels.soft_cap(y, block.num_columns, epilogue.multiplier, epilogue.soft_cap);
        }
    });
}

}  // namespace musespark
