#include "vision_model.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace musespark {

namespace {

constexpr float kLayerEps = 1e-5F;  // fixed in the reference inside the layers, unlike ln_pre and ln_post

// The still frame is shown twice, so its two halves of the weight act as their sum.
Tensor sum_of_frames(const Tensor& tensor, int64_t out, int64_t frame) {
    auto sum = std::make_shared<std::vector<float>>(static_cast<size_t>(checked_product({out, frame})));
    std::vector<float> row(static_cast<size_t>(2 * frame));
    for (int64_t r = 0; r < out; ++r) {
        tensor.read_row(r, row.data());
        for (int64_t i = 0; i < frame; ++i) {
            (*sum)[static_cast<size_t>(r * frame + i)] =
                row[static_cast<size_t>(i)] + row[static_cast<size_t>(frame + i)];
        }
    }
    Tensor result;
    result.name = tensor.name;
    result.shape = {out, frame};
    result.data = sum->data();
    result.owner = sum;
    return result;
}

}  // namespace

VisionModel::VisionModel(TensorSource& source, const VisionConfig& config, int64_t text_width, float eps, Format format,
                         const Machine& machine)
    : config_(config), text_width_(text_width), eps_(eps), head_{format, config.head_dim()} {
    const int64_t c = config_.hidden_size, frame = config_.frame_size();
    const int64_t wide = config_.projector_hidden_size, merged = c * config_.merge_size * config_.merge_size;
    const std::string prefix = "model.vision_tower.";
    const auto vector = [&](const char* name) { return read_vector(source.get(prefix + name, {c})); };
    const auto matrix = [&](const char* name, int64_t out, int64_t in) {
        return pack({source.get(name, {out, in})}, format, machine.kernels, machine.pool);
    };
    const Tensor embedding = source.get(prefix + "patch_embedder.patch_embedding.weight", {c, 2 * frame});
    patch_embedding_ = pack({sum_of_frames(embedding, c, frame)}, format, machine.kernels, machine.pool);
    position_table_ = read_vector(
        source.get(prefix + "patch_embedder.position_embedding_table.weight", {config_.window * config_.window, c}));
    ln_pre_weight_ = vector("ln_pre.weight");
    ln_pre_bias_ = vector("ln_pre.bias");
    ln_post_weight_ = vector("ln_post.weight");
    ln_post_bias_ = vector("ln_post.bias");
    for (size_t i = 0; i < config_.full_attention.size(); ++i) {
        layers_.push_back(load_layer(source, static_cast<int64_t>(i), format, machine));
    }
    adapter_fc1_ = matrix("model.vision_adapter.fc1.weight", wide, merged);
    adapter_fc2_ = matrix("model.vision_adapter.fc2.weight", wide, wide);
    projection_ = matrix("model.vision_projection.weight", text_width_, wide);
    for (int thread = 0; thread < machine.pool.num_threads(); ++thread) work_.attention.emplace_back(head_);
}

VisionModel::Layer VisionModel::load_layer(TensorSource& source, int64_t index, Format format,
                                           const Machine& machine) const {
    const int64_t c = config_.hidden_size, wide = config_.intermediate_size;
    const std::string prefix = "model.vision_tower.layers." + std::to_string(index) + ".";
    const auto vector = [&](const char* name, int64_t n) { return read_vector(source.get(prefix + name, {n})); };
    const auto tensor = [&](const char* name, int64_t out, int64_t in) { return source.get(prefix + name, {out, in}); };
    const auto packed = [&](const std::vector<Tensor>& stacked) {
        return pack(stacked, format, machine.kernels, machine.pool);
    };
    Layer layer;
    layer.full_attention = config_.full_attention[static_cast<size_t>(index)];
    layer.norm1_weight = vector("norm1.weight", c);
    layer.norm1_bias = vector("norm1.bias", c);
    layer.norm2_weight = vector("norm2.weight", c);
    layer.norm2_bias = vector("norm2.bias", c);
    layer.projections = packed(
        {tensor("attn.q_proj.weight", c, c), tensor("attn.k_proj.weight", c, c), tensor("attn.v_proj.weight", c, c)});
    for (const char* name : {"attn.q_proj.bias", "attn.k_proj.bias", "attn.v_proj.bias"}) {
        const std::vector<float> bias = vector(name, c);
        layer.projections_bias.insert(layer.projections_bias.end(), bias.begin(), bias.end());
    }
    layer.output = packed({tensor("attn.proj.weight", c, c)});
    layer.output_bias = vector("attn.proj.bias", c);
    layer.fc1 = packed({tensor("mlp.fc1.weight", wide, c)});
    layer.fc1_bias = vector("mlp.fc1.bias", wide);
    layer.fc2 = packed({tensor("mlp.fc2.weight", c, wide)});
    layer.fc2_bias = vector("mlp.fc2.bias", c);
    return layer;
}

void VisionModel::encode(const Machine& machine, const float* patches, int64_t rows, int64_t columns, float* features) {
    if (rows < 1 || columns < 1 || rows % config_.merge_size || columns % config_.merge_size) {
        throw std::invalid_argument("an image of " + std::to_string(rows) + " x " + std::to_string(columns) +
                                    " patches can't be merged; both must be positive multiples of " +
                                    std::to_string(config_.merge_size));
    }
    const Kernels& kernels = machine.kernels;
    const int64_t num_patches = rows * columns;
    const int64_t num_cells = num_patches / (config_.merge_size * config_.merge_size);
    order_patches(rows, columns);
    embed(machine, patches, rows, columns);
    compute_rotary(machine, columns);
    for (const Layer& layer : layers_) run_layer(machine, layer, num_patches);
    merge(machine, rows, columns);

    const int64_t wide = config_.projector_hidden_size;
    float* adapted = work_.projected.reserve(num_cells, wide);
    const auto rows_to_operand = [&](const PackedMatrix& matrix, const float* x, int64_t n) {
        work_.operand.shape_for(matrix, num_cells);
        for_rows(machine, num_cells, n, [&](int64_t i) { work_.operand.prepare(kernels, i, x + i * n, n); });
    };
    Epilogue gelu;
    gelu.gelu = true;
    rows_to_operand(adapter_fc1_, work_.merged.data(), adapter_fc1_.in);
    multiply(machine, adapter_fc1_, work_.operand, num_cells, adapted, wide, gelu);
    rows_to_operand(adapter_fc2_, adapted, wide);
    multiply(machine, adapter_fc2_, work_.operand, num_cells, adapted, wide, gelu);
    rows_to_operand(projection_, adapted, wide);
    multiply(machine, projection_, work_.operand, num_cells, features, text_width_);
    for_rows(machine, num_cells, text_width_ * 2, [&](int64_t i) {
        kernels.rms_norm(features + i * text_width_, nullptr, text_width_, eps_, features + i * text_width_);
    });
}

// Tiles of window x window patches from the top left, ragged at the right and bottom; all that follows is in this
// order.
void VisionModel::order_patches(int64_t rows, int64_t columns) {
    work_.order.clear();
    work_.windows.clear();
    const int64_t side = config_.window;
    for (int64_t top = 0; top < rows; top += side) {
        for (int64_t left = 0; left < columns; left += side) {
            const auto first = static_cast<int64_t>(work_.order.size());
            for (int64_t y = top; y < std::min(rows, top + side); ++y) {
                for (int64_t x = left; x < std::min(columns, left + side); ++x) work_.order.push_back(y * columns + x);
            }
            work_.windows.push_back({first, static_cast<int64_t>(work_.order.size()) - first});
        }
    }
}

void VisionModel::embed(const Machine& machine, const float* patches, int64_t rows, int64_t columns) {
    const int64_t c = config_.hidden_size, frame = config_.frame_size(), num_patches = rows * columns;
    work_.operand.shape_for(patch_embedding_, num_patches);
    for_rows(machine, num_patches, frame, [&](int64_t i) {
        work_.operand.prepare(machine.kernels, i, patches + work_.order[static_cast<size_t>(i)] * frame, frame);
    });
    float* hidden = work_.hidden.reserve(num_patches, c);
    multiply(machine, patch_embedding_, work_.operand, num_patches, hidden, c);
    for_rows(machine, num_patches, c * 6, [&](int64_t i) {
        float* row = hidden + i * c;
        add_position(row, work_.order[static_cast<size_t>(i)], rows, columns);
        machine.kernels.layer_norm(row, ln_pre_weight_.data(), ln_pre_bias_.data(), c, config_.layer_norm_eps, row);
    });
}

// The square table, sampled bilinearly with zeros outside. Patch n reads the sample at row n / rows, column n % rows of
// a columns x rows grid: for grids that are not square a scramble, and the one that published weights were trained
// with.
void VisionModel::add_position(float* row, int64_t patch, int64_t rows, int64_t columns) const {
    const int64_t side = config_.window, c = config_.hidden_size;
    const auto sample = [&](int64_t i, int64_t count) {
        return (static_cast<float>(i) + 0.5F) * static_cast<float>(side) / static_cast<float>(count) - 0.5F;
    };
    const float y = sample(patch / rows, columns), x = sample(patch % rows, rows);
    const auto top = static_cast<int64_t>(std::floor(y)), left = static_cast<int64_t>(std::floor(x));
    for (int64_t i = std::max<int64_t>(top, 0); i <= std::min(top + 1, side - 1); ++i) {
        for (int64_t j = std::max<int64_t>(left, 0); j <= std::min(left + 1, side - 1); ++j) {
            const float weight =
                (1.0F - std::abs(y - static_cast<float>(i))) * (1.0F - std::abs(x - static_cast<float>(j)));
            const float* entry = position_table_.data() + (i * side + j) * c;
            for (int64_t k = 0; k < c; ++k) row[k] += weight * entry[k];
        }
    }
}

// The column turns the first half of the pairs, the row the second. Coordinates count from 1: the reference keeps 0 for
// a class token that this tower does not have.
void VisionModel::compute_rotary(const Machine& machine, int64_t columns) {
    const int64_t half = config_.head_dim() / 2, quarter = half / 2;
    const auto num_patches = static_cast<int64_t>(work_.order.size());
    float* rotary = work_.rotary.reserve(num_patches, 2 * half);
    for_rows(machine, num_patches, half * 64, [&](int64_t i) {
        const int64_t patch = work_.order[static_cast<size_t>(i)];
        const float coordinate[2] = {static_cast<float>(patch % columns + 1), static_cast<float>(patch / columns + 1)};
        float* row = rotary + i * 2 * half;
        for (int64_t k = 0; k < half; ++k) {
            const float angle = coordinate[k / quarter] * config_.rotary_frequencies[static_cast<size_t>(k % quarter)];
            row[k] = static_cast<float>(std::cos(static_cast<double>(angle)));
            row[half + k] = static_cast<float>(std::sin(static_cast<double>(angle)));
        }
    });
}

void VisionModel::norm_rows(const Machine& machine, const std::vector<float>& weight, const std::vector<float>& bias,
                            const PackedMatrix& next, int64_t num_patches) {
    const int64_t c = config_.hidden_size;
    work_.operand.shape_for(next, num_patches);
    float* normed = work_.branch.reserve(num_patches, c);
    for_rows(machine, num_patches, c * 4, [&](int64_t i) {
        machine.kernels.layer_norm(work_.hidden.data() + i * c, weight.data(), bias.data(), c, kLayerEps,
                                   normed + i * c);
        work_.operand.prepare(machine.kernels, i, normed + i * c, c);
    });
}

void VisionModel::run_layer(const Machine& machine, const Layer& layer, int64_t num_patches) {
    const int64_t c = config_.hidden_size, wide = config_.intermediate_size;
    const auto add_branch = [&] {
        for_rows(machine, num_patches, c * 2,
                 [&](int64_t i) { machine.kernels.add(work_.hidden.data() + i * c, work_.branch.data() + i * c, c); });
    };
    Epilogue with_bias;
    norm_rows(machine, layer.norm1_weight, layer.norm1_bias, layer.projections, num_patches);
    with_bias.bias = layer.projections_bias.data();
    multiply(machine, layer.projections, work_.operand, num_patches, work_.projected.reserve(num_patches, 3 * c), 3 * c,
             with_bias);
    work_.operand.shape_for(layer.output, num_patches);
    attend(machine, layer.full_attention ? std::vector<Segment>{{0, num_patches}} : work_.windows, num_patches);
    with_bias.bias = layer.output_bias.data();
    multiply(machine, layer.output, work_.operand, num_patches, work_.branch.data(), c, with_bias);
    add_branch();

    norm_rows(machine, layer.norm2_weight, layer.norm2_bias, layer.fc1, num_patches);
    float* activated = work_.projected.reserve(num_patches, wide);
    with_bias.bias = layer.fc1_bias.data();
    with_bias.gelu = true;
    multiply(machine, layer.fc1, work_.operand, num_patches, activated, wide, with_bias);
    work_.operand.shape_for(layer.fc2, num_patches);
    for_rows(machine, num_patches, wide,
             [&](int64_t i) { work_.operand.prepare(machine.kernels, i, activated + i * wide, wide); });
    with_bias.bias = layer.fc2_bias.data();
    with_bias.gelu = false;
    multiply(machine, layer.fc2, work_.operand, num_patches, work_.branch.data(), c, with_bias);
    add_branch();
}

// ln_post, then merge_size x merge_size patches to one row, channel-major: entry channel * merge_size^2 + dy *
// merge_size + dx.
void VisionModel::merge(const Machine& machine, int64_t rows, int64_t columns) {
    const int64_t c = config_.hidden_size, m = config_.merge_size, num_patches = rows * columns;
    float* merged = work_.merged.reserve(num_patches / (m * m), c * m * m);
    for_rows(machine, num_patches, c * 8, [&](int64_t i) {
        float* row = work_.hidden.data() + i * c;
        machine.kernels.layer_norm(row, ln_post_weight_.data(), ln_post_bias_.data(), c, config_.layer_norm_eps, row);
        const int64_t patch = work_.order[static_cast<size_t>(i)];
        const int64_t y = patch / columns, x = patch % columns;
        float* cell = merged + (y / m * (columns / m) + x / m) * c * m * m + y % m * m + x % m;
        for (int64_t k = 0; k < c; ++k) cell[k * m * m] = row[k];
    });
}

}  // namespace musespark
