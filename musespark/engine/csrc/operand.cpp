#include "operand.h"

#include <algorithm>

namespace musespark {

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

}  // namespace musespark
