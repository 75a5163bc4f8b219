// Matrix products that need nothing of each other, as one loop over the threads: on a small model, where a product takes
// a few microseconds, each loop saved is one time less that all threads wait for the last.
#pragma once

#include <cstdint>
#include <vector>

#include "operand.h"

namespace musespark {

class Products {
public:
    void clear() {
        products_.clear();
        num_tasks_ = 0;
    }

    // out (num_rows, matrix.out) = rows times matrix `index` of a stack, row r at out + r * out_stride. The pointers are
    // to prepared rows, and stay valid until `run` has returned.
    void add(const PackedMatrix& matrix, int64_t index, const void* const* rows, int64_t num_rows, float* out,
             int64_t out_stride, const Epilogue& epilogue = {});

    void run(const Machine& machine) const;

private:
    struct Product {
        const PackedMatrix* matrix;
        int64_t index;
        const void* const* rows;
        int64_t num_rows;
        float* out;
        int64_t out_stride;
        Epilogue epilogue;
        int64_t panels_per_task, row_blocks, first_task;
    };

    static void run_task(const Kernels& kernels, const Product& product, int64_t task);

    std::vector<Product> products_;
    int64_t num_tasks_ = 0;
};

}  // namespace musespark
