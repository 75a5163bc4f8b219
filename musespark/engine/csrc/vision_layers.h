// The layers that both image towers have: attention and a GELU MLP behind layer norms, with biases and plain residual
// sums. How rows are ordered, which of them see each other and where they stand is the tower's business.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention.h"
#include "kv_pages.h"
#include "operand.h"
#include "vision_config.h"
#include "weights.h"

namespace musespark {

// Rows that see each other: [first, first + count).
struct Segment {
    int64_t first, count;
};

// Memory that the parts of a tower use one after the other; it grows to the largest image. P counts a class token too.
struct VisionWorkspace {
    Scratch<float> hidden;            // (P, C)
    Scratch<float> branch;            // (P, C)
    Scratch<float> projected;         // (P, 3C), later (P, intermediate) and the adapter's rows
    Scratch<float> rotary;            // (P, head_dim): cosines, sines
    Scratch<float> merged;            // (cells, C * merge_size^2)
    Scratch<std::byte> queries;       // (P, heads, head_dim) in the format of the keys
    Scratch<std::byte> pages;         // pages of 64 keys, all heads of a page together
    std::vector<Segment> page_rows;   // the rows in each page
    std::vector<int64_t> first_page;  // of each segment
    Operand operand;
    std::vector<AttentionScratch> attention;  // of each thread
};

// What a tower calls the tensors of a layer, without `.weight` and `.bias`.
struct VisionLayerNames {
    const char *norm1, *query, *key, *value, *output, *norm2;
};

using Rotate = void (*)(float* x, const float* cosine, const float* sine, int64_t half);

class VisionLayers {
public:
    // Tensors are called `prefix`, the number of the layer, `.` and a name. `rotate` says which channels are pairs.
    VisionLayers(TensorSource& source, const VisionConfig& config, const std::string& prefix,
                 const VisionLayerNames& names, Rotate rotate, Format format, const Machine& machine);

    // Memory for these layers.
    VisionWorkspace workspace(const Machine& machine) const;

    // Entry `row` of work.rotary: the column turns the first half of the pairs, the row of the image the second.
    void place(VisionWorkspace& work, int64_t row, int64_t image_column, int64_t image_row) const;

    // One layer on the rows of work.hidden, all of them in the segments, which ascend without gaps.
    void run(const Machine& machine, VisionWorkspace& work, int64_t layer, const std::vector<Segment>& segments) const;

private:
    struct Layer {
        std::vector<float> norm1_weight, norm1_bias, norm2_weight, norm2_bias;
        PackedMatrix projections;  // q, k, v under each other
        PackedMatrix output, fc1, fc2;
        std::vector<float> projections_bias, output_bias, fc1_bias, fc2_bias;
    };

    Layer load(TensorSource& source, const std::string& prefix, const VisionLayerNames& names, Format format,
               const Machine& machine) const;
    // work.operand = layer norm of the rows of work.hidden.
    void norm_rows(const Machine& machine, VisionWorkspace& work, const std::vector<float>& weight,
                   const std::vector<float>& bias, const PackedMatrix& next, int64_t num_rows) const;
    // vision_attention.cpp
    void attend(const Machine& machine, VisionWorkspace& work, const std::vector<Segment>& segments,
                int64_t num_rows) const;
    void fill_pages(const Machine& machine, VisionWorkspace& work, const std::vector<Segment>& segments,
                    int64_t num_rows) const;

    VisionConfig config_;
    Rotate rotate_;
    HeadPage head_;
    std::vector<Layer> layers_;
};

}  // namespace musespark
