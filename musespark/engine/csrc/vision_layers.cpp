#include "vision_layers.h"

#include <cmath>

namespace musespark {

namespace {

constexpr float kLayerEps = 1e-5F;  // fixed in the references, whatever the configuration says for other norms

}  // namespace

VisionLayers::VisionLayers(TensorSource& source, const VisionConfig& config, const std::string& prefix,
                           const VisionLayerNames& names, Rotate rotate, Format format, const Machine& machine)
    : config_(config), rotate_(rotate), head_{format, config.head_dim()} {
    for (int64_t i = 0; i < config_.num_hidden_layers; ++i) {
        layers_.push_back(load(source, prefix + std::to_string(i) + ".", names, format, machine));
    }
}

VisionLayers::Layer VisionLayers::load(TensorSource& source, const std::string& prefix, const VisionLayerNames& names,
                                       Format format, const Machine& machine) const {
    const int64_t c = config_.hidden_size, wide = config_.intermediate_size;
    const auto vector = [&](const std::string& name, int64_t n) { return read_vector(source.get(prefix + name, {n})); };
    const auto weight = [&](const std::string& name, int64_t out, int64_t in) {
        return source.get(prefix + name + ".weight", {out, in});
    };
    const auto packed = [&](const std::vector<Tensor>& stacked) {
        return pack(stacked, format, machine.kernels, machine.pool);
    };
    const auto bias = [&](const std::string& name, int64_t n) { return vector(name + ".bias", n); };
    Layer layer;
    layer.norm1_weight = vector(names.norm1 + std::string(".weight"), c);
    layer.norm1_bias = bias(names.norm1, c);
    layer.norm2_weight = vector(names.norm2 + std::string(".weight"), c);
    layer.norm2_bias = bias(names.norm2, c);
    layer.projections = packed({weight(names.query, c, c), weight(names.key, c, c), weight(names.value, c, c)});
    for (const char* name : {names.query, names.key, names.value}) {
        const std::vector<float> values = bias(name, c);
        layer.projections_bias.insert(layer.projections_bias.end(), values.begin(), values.end());
    }
    layer.output = packed({weight(names.output, c, c)});
    layer.output_bias = bias(names.output, c);
    layer.fc1 = packed({weight("mlp.fc1", wide, c)});
    layer.fc1_bias = bias("mlp.fc1", wide);
    layer.fc2 = packed({weight("mlp.fc2", c, wide)});
    layer.fc2_bias = bias("mlp.fc2", c);
    return layer;
}

VisionWorkspace VisionLayers::workspace(const Machine& machine) const {
    VisionWorkspace work;
    for (int thread = 0; thread < machine.pool.num_threads(); ++thread) work.attention.emplace_back(head_);
    return work;
}

void VisionLayers::place(VisionWorkspace& work, int64_t row, int64_t image_column, int64_t image_row) const {
    const int64_t half = config_.head_dim() / 2, quarter = half / 2;
    const float coordinate[2] = {static_cast<float>(image_column), static_cast<float>(image_row)};
    float* turns = work.rotary.data() + row * 2 * half;
    for (int64_t k = 0; k < half; ++k) {
        const float angle = coordinate[k / quarter] * config_.rotary_frequencies[static_cast<size_t>(k % quarter)];
        turns[k] = static_cast<float>(std::cos(static_cast<double>(angle)));
        turns[half + k] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
}

void VisionLayers::norm_rows(const Machine& machine, VisionWorkspace& work, const std::vector<float>& weight,
                             const std::vector<float>& bias, const PackedMatrix& next, int64_t num_rows) const {
    const int64_t c = config_.hidden_size;
    work.operand.shape_for(next, num_rows);
    float* normed = work.branch.reserve(num_rows, c);
    for_rows(machine, num_rows, c * 4, [&](int64_t i) {
        machine.kernels.layer_norm(work.hidden.data() + i * c, weight.data(), bias.data(), c, kLayerEps,
                                   normed + i * c);
        work.operand.prepare(machine.kernels, i, normed + i * c, c);
    });
}

void VisionLayers::run(const Machine& machine, VisionWorkspace& work, int64_t layer,
                       const std::vector<Segment>& segments) const {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    const int64_t c = config_.hidden_size, wide = config_.intermediate_size;
    const int64_t num_rows = segments.back().first + segments.back().count;
    const auto add_branch = [&] {
        for_rows(machine, num_rows, c * 2,
                 [&](int64_t i) { machine.kernels.add(work.hidden.data() + i * c, work.branch.data() + i * c, c); });
    };
    Epilogue with_bias;
    norm_rows(machine, work, l.norm1_weight, l.norm1_bias, l.projections, num_rows);
    with_bias.bias = l.projections_bias.data();
    multiply(machine, l.projections, work.operand, num_rows, work.projected.reserve(num_rows, 3 * c), 3 * c, with_bias);
    work.operand.shape_for(l.output, num_rows);
    attend(machine, work, segments, num_rows);
    with_bias.bias = l.output_bias.data();
    multiply(machine, l.output, work.operand, num_rows, work.branch.data(), c, with_bias);
    add_branch();

    norm_rows(machine, work, l.norm2_weight, l.norm2_bias, l.fc1, num_rows);
    float* activated = work.projected.reserve(num_rows, wide);
    with_bias.bias = l.fc1_bias.data();
    with_bias.gelu = true;
    multiply(machine, l.fc1, work.operand, num_rows, activated, wide, with_bias);
    work.operand.shape_for(l.fc2, num_rows);
    for_rows(machine, num_rows, wide,
             [&](int64_t i) { work.operand.prepare(machine.kernels, i, activated + i * wide, wide); });
    with_bias.bias = l.fc2_bias.data();
    with_bias.gelu = false;
    multiply(machine, l.fc2, work.operand, num_rows, work.branch.data(), c, with_bias);
    add_branch();
}

}  // namespace musespark
