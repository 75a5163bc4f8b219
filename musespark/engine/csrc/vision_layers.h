// The layers that both image towers have: attention and a GELU MLP behind layer norms, with biases and plain residual
// sums. How rows are ordered, which of them see each other and where they stand is the tower's business.
#pragma once

#include <cstdint>
#include <optional>
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

// Segments, ascending without gaps, and the pages of 64 keys that start anew with each of them.
struct SegmentPages {
    explicit SegmentPages(std::vector<Segment> of);

    std::vector<Segment> segments;
    std::vector<Segment> pages;       // the rows in each page
    std::vector<int64_t> first_page;  // of each segment
};

// What an image keeps from one layer to the next. P rows, a class token among them; C tower width.
struct ImageRows {
    int64_t count;
    Scratch<float> hidden;       // (P, C)
    Scratch<float> rotary;       // (P, head_dim): cosines, sines
    Scratch<std::byte> queries;  // (P, heads, head_dim) in the format of the keys
    Scratch<std::byte> pages;    // of keys and values, all heads of a page together
};

// Memory that images use one after the other, for the rows that are worked on at once.
struct VisionScratch {
    Scratch<float> branch;     // (rows, C)
    Scratch<float> projected;  // (rows, 3C), later (rows, intermediate) and the adapter's rows
    Scratch<float> merged;     // (cells, C * merge_size^2)
    Operand operand;
    std::optional<Attention> attention;
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

    VisionScratch scratch(const Machine& machine) const;

    // Memory for an image of so many rows, in pages of any of `layouts`.
    void reserve(ImageRows& image, int64_t count, const std::vector<SegmentPages>& layouts) const;

    // Entry `row` of image.rotary: the column turns the first half of the pairs, the row of the image the second.
    void place(ImageRows& image, int64_t row, int64_t image_column, int64_t image_row) const;

    // The first half of a layer for some rows of image.hidden: queries, keys and values.
    void project(const Machine& machine, VisionScratch& scratch, ImageRows& image, int64_t layer,
                 const SegmentPages& layout, const Segment& rows) const;

    // The second half, once the first is done for all rows that these see: attention and MLP.
    void attend(const Machine& machine, VisionScratch& scratch, ImageRows& image, int64_t layer,
                const SegmentPages& layout, const Segment& rows) const;

private:
    struct Layer {
        std::vector<float> norm1_weight, norm1_bias, norm2_weight, norm2_bias;
        PackedMatrix projections;  // q, k, v under each other
        PackedMatrix output, fc1, fc2;
        std::vector<float> projections_bias, output_bias, fc1_bias, fc2_bias;
    };

    Layer load(TensorSource& source, const std::string& prefix, const VisionLayerNames& names, Format format,
               const Machine& machine) const;
    // scratch.operand = layer norm of some rows of image.hidden.
    void norm_rows(const Machine& machine, VisionScratch& scratch, const ImageRows& image, const Segment& rows,
                   const std::vector<float>& weight, const std::vector<float>& bias, const PackedMatrix& next) const;
    // vision_attention.cpp
    void fill_pages(const Machine& machine, VisionScratch& scratch, ImageRows& image, const SegmentPages& layout,
                    const Segment& rows) const;
    void attend_pages(const Machine& machine, VisionScratch& scratch, const ImageRows& image,
                      const SegmentPages& layout, const Segment& rows) const;

    VisionConfig config_;
    Rotate rotate_;
    HeadPage head_;
    std::vector<Layer> layers_;
};

}  // namespace musespark
