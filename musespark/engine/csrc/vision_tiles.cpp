#include "vision_tiles.h"

#include <algorithm>
#include <stdexcept>

namespace musespark {

namespace {

constexpr float kNormEps = 1e-5F;  // fixed in the reference
constexpr VisionLayerNames kLayerNames = {"input_layernorm",  "self_attn.q_proj", "self_attn.k_proj",
                                          "self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm"};
constexpr VisionAdapterNames kAdapterNames = {"vision_model.vision_adapter.mlp.fc1.weight",
                                              "vision_model.vision_adapter.mlp.fc2.weight",
                                              "multi_modal_projector.linear_1.weight"};

}  // namespace

TileTower::TileTower(TensorSource& source, const VisionConfig& config, int64_t text_width, Format format,
                     const Machine& machine)
    : config_(config),
      side_(std::get<TileImages>(config.images).side),
      layers_(source, config, "vision_model.model.layers.", kLayerNames, machine.kernels.rotate_neighbours, format,
              machine),
      adapter_(source, config, kAdapterNames, text_width, format, machine),
      work_(layers_.workspace(machine)) {
    const int64_t c = config_.hidden_size, num_patches = side_ * side_;
    const std::string prefix = "vision_model.";
    const auto vector = [&](const char* name) { return read_vector(source.get(prefix + name, {c})); };
    patch_embedding_ = pack({source.get(prefix + "patch_embedding.linear.weight", {c, config_.frame_size()})}, format,
                            machine.kernels, machine.pool);
    class_embedding_ = vector("class_embedding");
    positions_ = read_vector(source.get(prefix + "positional_embedding_vlm", {num_patches + 1, c}));
    pre_weight_ = vector("layernorm_pre.weight");
    pre_bias_ = vector("layernorm_pre.bias");
    post_weight_ = vector("layernorm_post.weight");
    post_bias_ = vector("layernorm_post.bias");
    // The same for every tile. Places count from 1; the class token stands at 0 and is not turned.
    work_.rotary.reserve(num_patches + 1, config_.head_dim());
    for (int64_t i = 0; i < num_patches; ++i) layers_.place(work_, i, i % side_ + 1, i / side_ + 1);
    layers_.place(work_, num_patches, 0, 0);
}

void TileTower::encode(const Machine& machine, const float* patches, int64_t rows, int64_t columns, float* features) {
    if (rows != side_ || columns != side_) {
        throw std::invalid_argument("a tile of this model has " + std::to_string(side_) + " x " +
                                    std::to_string(side_) + " patches; this image has " + std::to_string(rows) + " x " +
                                    std::to_string(columns));
    }
    embed(machine, patches);
    const std::vector<Segment> whole = {{0, side_ * side_ + 1}};
    for (int64_t i = 0; i < config_.num_hidden_layers; ++i) layers_.run(machine, work_, i, whole);
    merge(machine);
    adapter_.run(machine, work_, side_ * side_ / (config_.merge_size * config_.merge_size), features);
}

void TileTower::embed(const Machine& machine, const float* patches) {
    const int64_t c = config_.hidden_size, frame = config_.frame_size(), num_patches = side_ * side_;
    work_.operand.shape_for(patch_embedding_, num_patches);
    for_rows(machine, num_patches, frame,
             [&](int64_t i) { work_.operand.prepare(machine.kernels, i, patches + i * frame, frame); });
    float* hidden = work_.hidden.reserve(num_patches + 1, c);
    multiply(machine, patch_embedding_, work_.operand, num_patches, hidden, c);
    std::copy(class_embedding_.begin(), class_embedding_.end(), hidden + num_patches * c);
    for_rows(machine, num_patches + 1, c * 4, [&](int64_t i) {
        float* row = hidden + i * c;
        machine.kernels.add(row, positions_.data() + i * c, c);
        machine.kernels.layer_norm(row, pre_weight_.data(), pre_bias_.data(), c, kNormEps, row);
    });
}

// The last norm, then merge_size x merge_size patches to one row, patch after patch: entry (dy * merge_size + dx) * C +
// channel. The class token is left behind.
void TileTower::merge(const Machine& machine) {
    const int64_t c = config_.hidden_size, m = config_.merge_size, num_patches = side_ * side_;
    float* merged = work_.merged.reserve(num_patches / (m * m), config_.merged_size());
    for_rows(machine, num_patches, c * 4, [&](int64_t i) {
        const int64_t y = i / side_, x = i % side_;
        float* cell = merged + (y / m * (side_ / m) + x / m) * config_.merged_size() + (y % m * m + x % m) * c;
        machine.kernels.layer_norm(work_.hidden.data() + i * c, post_weight_.data(), post_bias_.data(), c, kNormEps,
                                   cell);
    });
}

}  // namespace musespark
