// Weights as the kernels want them: read from whatever the checkpoint stores, repacked into panels of 16 outputs, owned
// here. Integers stay the integers that they are, in four or eight bits.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "thread_pool.h"

namespace musespark {

// One tensor of the checkpoint, a view that stays valid while `owner` lives.
struct Tensor {
    // int4: rows of whole 32-bit words, eight inputs in each, the first in the lowest bits, each with 8 added.
    enum class Type { float32, float16, bfloat16, int8, int4 };

    std::string name;
    Type type = Type::float32;
    std::vector<int64_t> shape;
    const void* data = nullptr;
    const void* scales = nullptr;       // int8 and int4: (..., out, in / group_size)
    Type scales_type = Type::bfloat16;  // or float32
    // Inputs that share a scale. Of floats: to be rounded so where integers are asked for; 0 to keep them as they are.
    int64_t group_size = 0;
    std::shared_ptr<void> owner;
    int64_t* held_bytes = nullptr;  // where the memory that is made of this tensor is counted, if anywhere

    bool is_integer() const { return type == Type::int8 || type == Type::int4; }
    int64_t width() const { return shape.back(); }

    // Row `row` of the tensor seen as (product of the other dimensions, last dimension): as floats, as integers, and the
    // scale of each of its groups. The last two only where it holds integers.
    void read_row(int64_t row, float* out) const;
    void read_integers(int64_t row, int8_t* out) const;
    void read_scales(int64_t row, float* out) const;
};

// Where tensors come from: the Python side looks them up in the checkpoint.
class TensorSource {
public:
    virtual ~TensorSource() = default;
    // `fetch`, checked to have that shape. Throws std::invalid_argument naming the tensor and both shapes.
    Tensor get(const std::string& name, const std::vector<int64_t>& shape);

    // Bytes of all that was packed, read or kept of these tensors.
    int64_t held_bytes() const { return held_bytes_; }

protected:
    virtual Tensor fetch(const std::string& name) = 0;

private:
    int64_t held_bytes_ = 0;
};

// `num_matrices` matrices of equal shape (the experts of a layer, or 1), packed. Outputs and inputs are padded with
// zeros.
struct PackedMatrix {
    Format format = Format::float32;
    int64_t num_matrices = 0;
    int64_t out = 0;
    int64_t in = 0;
    int64_t depth = 0;           // inputs, padded to what the format needs
    int64_t group_size = 1;      // of integers: inputs that share a scale
    int64_t row_group_size = 1;  // the same for the rows that are multiplied, see GemmBlock
    bool wide_scales = false;
    int64_t num_panels = 0;  // of one matrix
    int64_t panel_bytes = 0;
    Bytes panels;

    const std::byte* matrix(int64_t index) const { return panels.data() + index * num_panels * panel_bytes; }
};

// Inputs that share a scale where floats that don't say it are rounded to integers.
constexpr int64_t kDefaultGroup = 32;

// Packs tensors of the same input width, stacked along the outputs: (out, in) each, or one (E, out, in). Integers keep
// their values and scales, and are dequantised for float formats; floats are rounded to nearest, with a bfloat16 scale
// for each group. Asked for integers, the matrix is as wide as its widest tensor: bfloat16 if one has floats that are to
// be kept, int8 if one has that, or groups that int4 can't have. Throws std::invalid_argument if stacked tensors have
// different group sizes.
PackedMatrix pack(const std::vector<Tensor>& stacked, Format format, const Kernels& kernels, ThreadPool& pool);

// A copy of the values as they are stored, which `tensor` is a view of from now on. Throws std::invalid_argument for
// integers.
Bytes keep(Tensor& tensor);

// The tensor as floats, each plus `offset`.
std::vector<float> read_vector(const Tensor& tensor, float offset = 0.0F);

}  // namespace musespark
