// Weights as the kernels want them: read from whatever the checkpoint stores, repacked into panels of 16 outputs, owned
// here.
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
    enum class Type { float32, float16, bfloat16, int8 };

    std::string name;
    Type type = Type::float32;
    std::vector<int64_t> shape;
    const void* data = nullptr;
    const float* scales = nullptr;  // int8 only: (..., out, in / group_size)
    int64_t group_size = 0;         // int8 only
    std::shared_ptr<void> owner;

    // Row `row` of the tensor seen as (product of the other dimensions, last dimension), as floats.
    void read_row(int64_t row, float* out) const;
};

// Where tensors come from: the Python side looks them up in the checkpoint.
class TensorSource {
public:
    virtual ~TensorSource() = default;
    virtual Tensor get(const std::string& name) = 0;
    // `get`, checked to have that shape. Throws std::invalid_argument naming the tensor and both shapes.
    Tensor get(const std::string& name, const std::vector<int64_t>& shape);
};

// `num_matrices` matrices of equal shape (the experts of a layer, or 1), packed. Outputs and inputs are padded with
// zeros.
struct PackedMatrix {
    Format format = Format::float32;
    int64_t num_matrices = 0;
    int64_t out = 0;
    int64_t in = 0;
    int64_t depth = 0;       // inputs, padded to what the format needs
    int64_t group_size = 0;  // int8: inputs that share a scale
    int64_t num_panels = 0;  // of one matrix
    int64_t panel_bytes = 0;
    Bytes panels;

    const std::byte* matrix(int64_t index) const { return panels.data() + index * num_panels * panel_bytes; }
};

// Inputs that share a scale where the checkpoint is not quantised and int8 is asked for.
constexpr int64_t kDefaultGroup = 32;

// Bytes of a panel of `depth` inputs; depth is padded already.
int64_t panel_bytes(Format format, int64_t depth, int64_t group_size);

// Packs tensors of the same input width, stacked along the outputs: (out, in) each, or one (E, out, in). An int8
// checkpoint keeps its integers and scales in int8 and is dequantised for the other formats; a float one is rounded to
// nearest, with a scale for each group. Throws std::invalid_argument if stacked tensors have different group sizes.
PackedMatrix pack(const std::vector<Tensor>& stacked, Format format, const Kernels& kernels, ThreadPool& pool);

// The tensor as floats, each plus `offset`.
std::vector<float> read_vector(const Tensor& tensor, float offset = 0.0F);

}  // namespace musespark
