// A stack of SwiGLUs of one shape, the experts of a layer or a single one: down(silu(gate(x)) * up(x)). Letters: m width
// of what they read and write, F width between.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "products.h"
#include "weights.h"

namespace musespark {

struct SwigluStack {
    PackedMatrix gate_up;  // (2F, m), gate above up
    PackedMatrix down;     // (m, F)
};

// The rows of one step on their way through a stack, and the scratch memory for it.
class SwigluRows {
public:
    // Make room for `num_inputs` inputs and `num_rows` rows.
    void begin(const SwigluStack& stack, int64_t num_inputs, int64_t num_rows);

    // Input `index` is m floats `x`. Several threads may prepare inputs at once.
    void prepare(const Kernels& kernels, int64_t index, const float* x) {
        input_.prepare(kernels, index, x, stack_->gate_up.in);
    }

    struct Part {
        SwigluRows& rows;
        const int64_t* starts;   // rows [starts[e], starts[e + 1]) go through member e of the stack
        const int64_t* sources;  // (num_rows) the input that each row reads; null: its own
        float* out;              // (num_rows, m)
    };

    // All parts together.
    static void forward(const Machine& machine, Products& products, std::initializer_list<Part> parts);

private:
    void add_products(Products& products, const PackedMatrix& matrix, const int64_t* starts, float* out) const;
    void activate(const Kernels& kernels, int64_t row);

    const SwigluStack* stack_ = nullptr;
    int64_t num_rows_ = 0;
    Operand input_, wide_input_;
    Scratch<float> wide_;  // (num_rows, 2F)
    std::vector<const void*> pointers_;
};

}  // namespace musespark
