// The arithmetic of one core, as a table of functions. kernel_templates.h holds the code once; each kernels_*.cpp
// compiles it for one instruction set, and isa.cpp chooses a table at run time.
//
// One rule makes results independent of batching, chunking and threads: every output element is one chain of additions
// in an order that depends on the element's own inputs only. Blocking may change which elements are computed together,
// never the order inside one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace musespark {

// How a matrix product stores its weights and takes its rows.
enum class Format : uint8_t { float32, bfloat16, int8, int4 };
constexpr int kNumFormats = 4;

// Outputs of one packed panel. A panel holds 16 outputs for all inputs, outputs innermost, so a row of weights of 16
// outputs meets one input in one vector. Layouts, `depth` being the padded number of inputs:
//   float32   [depth][16] float
//   bfloat16  [depth / 2][16][2] uint16
//   int8      [depth / 4][16][4] int8, then the scales
//   int4      [depth / 8][16][4] bytes, then the scales; of eight inputs the first four are the lower halves of the four
//             bytes and the others the upper ones, each with 8 added
//   scales    [depth / group_size][16] of bfloat16, or of float where a checkpoint's scales need it
constexpr int64_t kPanel = 16;
constexpr int64_t kStepBytes = kPanel * 4;  // of a panel of integers: what one vector product reads

// Follows the int8 values of a prepared row, one for each of its groups of inputs: value = int8 * scale.
struct RowGroup {
    float scale;
    int32_t sum;  // of the int8 values: times what is added to stored weights, it corrects the dot product
};

// rows (num_rows) x panels -> out (num_rows, num_columns), row r at out + r * out_stride.
struct GemmBlock {
    const void* const* rows;  // prepared by `to_bfloat16` or `to_int8`; float32 rows as they are
    int64_t num_rows;
    const std::byte* panels;
    int64_t panel_bytes;
    int64_t num_panels;
    int64_t num_columns;  // at most 16 * num_panels; nothing is written beyond
    int64_t depth;
    // int8 and int4 only: inputs of a row that share a scale, a divisor of group_size, inputs of a weight that do.
    int64_t row_group_size;
    int64_t group_size;
    bool wide_scales;  // float scales of the weights
    float* out;
    int64_t out_stride;
    bool accumulate;  // the chains start from `out` instead of zero; float32 and bfloat16 only
};

// One row of attention in a page: its prepared query and the keys [low, high) of the page that it sees, at least one.
struct PageQuery {
    const void* row;  // times what makes scores of units of log2; float32, or by `to_bfloat16`, or by `to_int8`, one group
    int64_t low, high;
};

// A step of online softmax for rows that see something of one page. Sums are 2^(score - maximum) of the pages so far.
struct PageBlock {
    const PageQuery* queries;
    int64_t num_rows;
    const std::byte* page;  // as in kv_pages.h
    int64_t ahead;          // from this page to the one that is needed next, in bytes; 0: none
    int64_t head_dim;
    float* maxima;    // (num_rows) of the scores; start at kSoftmaxStart
    float* sums;      // (num_rows, 16) in 16 lanes; start at zero
    float* weighted;  // (num_rows, head_dim rounded up to 16) of values; start at zero
};

// A finite start, so that nothing becomes NaN where there was nothing.
constexpr float kSoftmaxStart = -1e30F;

struct Kernels {
    const char* isa;
    uint8_t int8_weight_xor;  // 0x80 where weights are stored unsigned, with 128 added

    void (*gemm[kNumFormats])(const GemmBlock&);  // by Format

    // Prepare n floats as a row of `depth` inputs, zero beyond n.
    void (*to_bfloat16)(const float* x, int64_t n, uint16_t* row, int64_t depth);
    // The same for int8 and int4: int8 values, then one RowGroup for each group. Scales are max|x| / 127 of the group.
    void (*to_int8)(const float* x, int64_t n, std::byte* row, int64_t depth, int64_t group_size);

    // y = x / sqrt(mean(x^2) + eps), times `weight` unless it is null. y may be x.
    void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* y);
    // y = x * weight / sqrt(mean((x * weight)^2) + eps). y may be x.
    void (*input_scaled_norm)(const float* x, const float* weight, int64_t n, float eps, float* y);
    void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* y);

    void (*residual_gate)(float* residual, const float* alpha, const float* beta, const float* branch, int64_t n);
    void (*add)(float* y, const float* x, int64_t n);
    void (*add_scaled)(float* y, const float* x, float scale, int64_t n);
    // sum += x, with what rounding took from the sum kept in `lost` and given back later.
    void (*add_compensated)(float* sum, float* lost, const float* x, int64_t n);
    void (*scale)(float* y, float scale, int64_t n);
    void (*sigmoid)(float* x, int64_t n);
    void (*multiply_by_sigmoid)(float* y, const float* x, int64_t n);
    void (*silu_multiply)(const float* gate, const float* up, int64_t n, float* y);
    void (*gelu)(float* x, int64_t n);  // exact, by the error function
    // x = cap * tanh(x * multiplier / cap)
    void (*soft_cap)(float* x, int64_t n, float multiplier, float cap);
    // Turn the pairs (x[i], x[i + half]) by the angle i.
    void (*rotate)(float* x, const float* cosine, const float* sine, int64_t half);
    // Turn the pairs (x[2 * i], x[2 * i + 1]) by the angle i.
    void (*rotate_neighbours)(float* x, const float* cosine, const float* sine, int64_t half);

    void (*attend_page[3])(const PageBlock&);  // by Format, of pages of float32, bfloat16 and int8
};

constexpr int64_t kPageTokens = 64;

const Kernels& kernels_portable();
#ifdef MUSESPARK_X86
const Kernels& kernels_avx2();
const Kernels& kernels_avx512_base();
const Kernels& kernels_avx512();
#endif

}  // namespace musespark
