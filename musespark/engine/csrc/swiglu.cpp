#include "swiglu.h"

#include <algorithm>

namespace musespark {

void SwigluRows::begin(const SwigluStack& stack, int64_t num_inputs, int64_t num_rows) {
    stack_ = &stack;
    num_rows_ = num_rows;
    input_.shape_for(stack.gate_up, num_inputs);
    wide_.reserve(num_rows, stack.gate_up.out);
    wide_input_.shape_for(stack.down, num_rows);
    pointers_.resize(static_cast<size_t>(num_rows));
}

void SwigluRows::forward(const Machine& machine, Products& products, std::initializer_list<Part> parts) {
    products.clear();
    int64_t num_rows = 0, row_cost = 0;
    for (const Part& part : parts) {
        SwigluRows& rows = part.rows;
        for (int64_t i = 0; i < rows.num_rows_; ++i) {
            rows.pointers_[static_cast<size_t>(i)] = rows.input_.row(part.sources ? part.sources[i] : i);
        }
        rows.add_products(products, rows.stack_->gate_up, part.starts, rows.wide_.data());
        num_rows += rows.num_rows_;
        row_cost = std::max(row_cost, rows.stack_->down.in * 8);
    }
    products.run(machine);

    for_rows(machine, num_rows, row_cost, [&](int64_t row) {
        const Part* part = parts.begin();
        for (; row >= part->rows.num_rows_; ++part) row -= part->rows.num_rows_;
        part->rows.activate(machine.kernels, row);
    });

    products.clear();
    for (const Part& part : parts) {
        SwigluRows& rows = part.rows;
        for (int64_t i = 0; i < rows.num_rows_; ++i) {
            rows.pointers_[static_cast<size_t>(i)] = rows.wide_input_.row(i);
        }
        rows.add_products(products, rows.stack_->down, part.starts, part.out);
    }
    products.run(machine);
}

void SwigluRows::add_products(Products& products, const PackedMatrix& matrix, const int64_t* starts, float* out) const {
    for (int64_t member = 0; member < matrix.num_matrices; ++member) {
        const int64_t first = starts[member];
        products.add(matrix, member, pointers_.data() + first, starts[member + 1] - first, out + first * matrix.out,
                     matrix.out);
    }
}

// silu(gate) * up of a row, prepared for the product that comes after.
void SwigluRows::activate(const Kernels& kernels, int64_t row) {
    const int64_t width = stack_->down.in;
    float* wide = wide_.data() + row * 2 * width;
    kernels.silu_multiply(wide, wide + width, width, wide);
    wide_input_.prepare(kernels, row, wide, width);
}

}  // namespace musespark
