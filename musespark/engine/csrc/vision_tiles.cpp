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
    : ImageTower(config),
      side_(std::get<TileImages>(config.images).side),
      layers_(source, config, "vision_model.model.layers.", kLayerNames, machine.kernels.rotate_neighbours, format,
              machine),
      adapter_(source, config, kAdapterNames, text_width, format, machine) {
    scratch_ = layers_.scratch(machine);
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
}

void TileTower::check_grid(int64_t rows, int64_t columns) const {
    if (rows != side_ || columns != side_) {
        throw std::invalid_argument("a tile of this model has " + std::to_string(side_) + " x " +
                                    std::to_string(side_) + " patches; this image has " + std::to_string(rows) + " x " +
                                    std::to_string(columns));
    }
}

int64_t TileTower::arrange(ImageEncoding& encoding) const {
    const int64_t count = side_ * side_ + 1;
    encoding.layouts.emplace_back(std::vector<Segment>{{0, count}});
    return count;
}

// Places count from 1; the class token, the last row, stands at 0 and is not turned.
void TileTower::embed(const Machine& machine, ImageEncoding& encoding, const Segment& rows) {
    const int64_t c = config_.hidden_size, frame = config_.frame_size(), num_patches = side_ * side_;
    const int64_t patches_here = std::min(rows.count, num_patches - rows.first);
    scratch_.operand.shape_for(patch_embedding_, patches_here);
    for_rows(machine, patches_here, frame, [&](int64_t i) {
        scratch_.operand.prepare(machine.kernels, i, encoding.patches + (rows.first + i) * frame, frame);
    });
    float* hidden = encoding.image.hidden.data() + rows.first * c;
    multiply(machine, patch_embedding_, scratch_.operand, patches_here, hidden, c);
    if (patches_here < rows.count) std::copy(class_embedding_.begin(), class_embedding_.end(), hidden + patches_here * c);
    for_rows(machine, rows.count, c * 4 + config_.head_dim() * 32, [&](int64_t i) {
        const int64_t place = rows.first + i;
        float* row = hidden + i * c;
        machine.kernels.add(row, positions_.data() + place * c, c);
        machine.kernels.layer_norm(row, pre_weight_.data(), pre_bias_.data(), c, kNormEps, row);
        const bool is_patch = place < num_patches;
        layers_.place(encoding.image, place, is_patch ? place % side_ + 1 : 0, is_patch ? place / side_ + 1 : 0);
    });
}

// The last norm, then merge_size x merge_size patches to one row, patch after patch: entry (dy * merge_size + dx) * C +
// channel. The class token is left behind. Then the adapter.
void TileTower::finish(const Machine& machine, ImageEncoding& encoding, const Segment& cells) {
    const int64_t c = config_.hidden_size, m = config_.merge_size;
    float* merged = scratch_.merged.reserve(cells.count, config_.merged_size());
    for_rows(machine, cells.count, config_.merged_size() * 4, [&](int64_t i) {
        const int64_t cell = cells.first + i, top = cell / (side_ / m) * m, left = cell % (side_ / m) * m;
        for (int64_t part = 0; part < m * m; ++part) {
            const int64_t patch = (top + part / m) * side_ + left + part % m;
            machine.kernels.layer_norm(encoding.image.hidden.data() + patch * c, post_weight_.data(),
                                       post_bias_.data(), c, kNormEps, merged + (i * m * m + part) * c);
        }
    });
    adapter_.run(machine, scratch_, cells.count, encoding.features + cells.first * adapter_.width());
}

}  // namespace musespark
