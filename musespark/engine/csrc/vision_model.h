// The image tower, merger, adapter and projection: patches of any grid to features in the width of the text. Source:
// muse_spark as in musespark/model/network/vision.py; letters as there: P patches, C tower width, D text width.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention.h"
#include "config.h"
#include "kv_pages.h"
#include "operand.h"
#include "weights.h"

namespace musespark {

class VisionModel {
public:
    // `format` is float32 or bfloat16. `text_width` and `eps` are those of the text model that takes the features.
    VisionModel(TensorSource& source, const VisionConfig& config, int64_t text_width, float eps, Format format,
                const Machine& machine);

    // patches (rows * columns, 3 * patch_size^2) in raster order -> features (rows * columns / merge_size^2, D), of
    // unit mean square. Throws std::invalid_argument if the grid can't be merged.
    void encode(const Machine& machine, const float* patches, int64_t rows, int64_t columns, float* features);

private:
    struct Layer {
        bool full_attention;
        std::vector<float> norm1_weight, norm1_bias, norm2_weight, norm2_bias;
        PackedMatrix projections;  // q, k, v under each other
        PackedMatrix output, fc1, fc2;
        std::vector<float> projections_bias, output_bias, fc1_bias, fc2_bias;
    };

    // Patches that see each other: rows [first, first + count) in window order.
    struct Segment {
        int64_t first, count;
    };

    struct Workspace {
        std::vector<int64_t> order;  // (P) raster index of each row: window by window
        std::vector<Segment> windows;
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
        std::vector<AttentionScratch> attention;
    };

    Layer load_layer(TensorSource& source, int64_t index, Format format, const Machine& machine) const;
    void order_patches(int64_t rows, int64_t columns);
    void embed(const Machine& machine, const float* patches, int64_t rows, int64_t columns);
    void add_position(float* row, int64_t patch, int64_t rows, int64_t columns) const;
    void compute_rotary(const Machine& machine, int64_t columns);
    void run_layer(const Machine& machine, const Layer& layer, int64_t num_patches);
    void attend(const Machine& machine, const std::vector<Segment>& segments, int64_t num_patches);
    void fill_pages(const Machine& machine, const std::vector<Segment>& segments);
    void merge(const Machine& machine, int64_t rows, int64_t columns);
    // work_.operand = layer norm of the rows of work_.hidden.
    void norm_rows(const Machine& machine, const std::vector<float>& weight, const std::vector<float>& bias,
                   const PackedMatrix& next, int64_t num_patches);

    VisionConfig config_;
    int64_t text_width_;
    float eps_;
    HeadPage head_;
    PackedMatrix patch_embedding_;
    std::vector<float> position_table_;  // (window^2, C)
    std::vector<float> ln_pre_weight_, ln_pre_bias_, ln_post_weight_, ln_post_bias_;
    std::vector<Layer> layers_;
    PackedMatrix adapter_fc1_, adapter_fc2_, projection_;
    Workspace work_;
};

}  // namespace musespark
