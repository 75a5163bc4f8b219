// The shape of an image tower, as ModelConfig (musespark/model/config.py) describes it; filled in by
// bindings_vision.cpp.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

namespace musespark {

// Images of any grid of patches, some layers with attention within windows: the Muse families.
struct GridImages {
    int64_t window;  // side, in patches; that of the position table too
    float layer_norm_eps;
    bool swapped_axes;                 // of the samples from the position table: muse_spark, not muse_glimmer
    std::vector<bool> full_attention;  // by layer
};

// Square tiles of one size and a class token, in which everything sees everything: Llama 4.
struct TileImages {
    int64_t side;  // in patches
};

struct VisionConfig {
    int64_t hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, patch_size, merge_size;
    int64_t projector_hidden_size;
    std::vector<float> rotary_frequencies;  // (head_dim / 4): columns and rows each turn half of the pairs
    std::variant<GridImages, TileImages> images;

    int64_t head_dim() const { return hidden_size / num_attention_heads; }
    int64_t frame_size() const { return 3 * patch_size * patch_size; }  // values of one patch of one frame
    int64_t merged_size() const { return hidden_size * merge_size * merge_size; }
};

}  // namespace musespark
