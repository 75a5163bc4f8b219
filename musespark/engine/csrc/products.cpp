#include "products.h"

#include <algorithm>
#include <stdexcept>

namespace musespark {

namespace {

// Multiplications in one task: about two microseconds of a core, ten times what claiming a task costs.
constexpr int64_t kTaskProducts = 1 << 16;

// Enough work to be worth claiming, little enough to share.
int64_t panels_per_task(const PackedMatrix& matrix, int64_t rows) {
    const int64_t products = std::max<int64_t>(rows * matrix.depth * kPanel, 1);
    return std::min(round_up(divide_up(kTaskProducts, products), 4), matrix.num_panels);
}

}  // namespace

void Products::add(const PackedMatrix& matrix, int64_t index, const void* const* rows, int64_t num_rows, float* out,
                   int64_t out_stride, const Epilogue& epilogue) {
    if (num_rows == 0) return;
    const int64_t panels = panels_per_task(matrix, std::min(num_rows, kRowBlock));
    const int64_t row_blocks = divide_up(num_rows, kRowBlock);
    products_.push_back(
        {&matrix, index, rows, num_rows, out, out_stride, epilogue, panels, row_blocks, num_tasks_});
    num_tasks_ += row_blocks * divide_up(matrix.num_panels, panels);
}

void Products::run(const Machine& machine) const {
    machine.pool.run(num_tasks_, [&](int64_t task, int) {
        const auto begins_later = [](int64_t index, const Product& product) { return index < product.first_task; };
        const auto next = std::upper_bound(products_.begin(), products_.end(), task, begins_later);
        const Product& product = *(next - 1);
        run_task(machine.kernels, product, task - product.first_task);
    });
}

// All blocks of rows of some panels, then the next panels.
void Products::run_task(const Kernels& kernels, const Product& product, int64_t task) {
    const int64_t first_row = task % product.row_blocks * kRowBlock;
    const int64_t first_panel = task / product.row_blocks * product.panels_per_task;
    const GemmBlock block = block_of(*product.matrix, product.index, product.rows + first_row,
                                     std::min(kRowBlock, product.num_rows - first_row), first_panel,
                                     product.panels_per_task, product.out + first_row * product.out_stride,
                                     product.out_stride);
    kernels.gemm[static_cast<int>(product.matrix->format)](block);

    const Epilogue& epilogue = product.epilogue;
    for (int64_t r = 0; r < block.num_rows; ++r) {
        float* y = block.out + r * block.out_stride;
        if (epilogue.bias) kernels.add(y, epilogue.bias + first_panel * kPanel, block.num_columns);
        if (epilogue.gelu) kernels.gelu(y, block.num_columns);
        if (epilogue.soft_cap > 0.0F)
            kernels.soft_cap(y, block.num_columns, epilogue.multiplier, epilogue.soft_cap);
    }
}

void multiply(const Machine& machine, const PackedMatrix& matrix, const Operand& operand, int64_t rows, float* out,
              int64_t out_stride, const Epilogue& epilogue) {
    if (!operand.fits(matrix)) throw std::logic_error("rows prepared for another kind of matrix");
    std::vector<const void*> pointers;
    pointers.reserve(static_cast<size_t>(rows));
    for (int64_t row = 0; row < rows; ++row) pointers.push_back(operand.row(row));
    Products products;
    products.add(matrix, 0, pointers.data(), rows, out, out_stride, epilogue);
    products.run(machine);
}

}  // namespace musespark
