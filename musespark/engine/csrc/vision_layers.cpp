#include "vision_layers.h"

#include <algorithm>
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

SegmentPages::SegmentPages(std::vector<Segment> of) : segments(std::move(of)) {
    for (const Segment& segment : segments) {
        first_page.push_back(static_cast<int64_t>(pages.size()));
        for (int64_t row = 0; row < segment.count; row += kPageTokens) {
            pages.push_back({segment.first + row, std::min(kPageTokens, segment.count - row)});
        }
    }
}

VisionScratch VisionLayers::scratch(const Machine& machine) const {
    VisionScratch scratch;
    scratch.attention.emplace(head_, machine.pool.num_threads());
    return scratch;
}

void VisionLayers::reserve(ImageRows& image, int64_t count, const std::vector<SegmentPages>& layouts) const {
    image.count = count;
    image.hidden.reserve(count, config_.hidden_size);
    image.rotary.reserve(count, config_.head_dim());
    image.queries.reserve(count, config_.num_attention_heads * head_.query_bytes());
    for (const SegmentPages& layout : layouts) {
        image.pages.reserve(static_cast<int64_t>(layout.pages.size()), config_.num_attention_heads * head_.bytes());
    }
}

void VisionLayers::place(ImageRows& image, int64_t row, int64_t image_column, int64_t image_row) const {
    const int64_t half = config_.head_dim() / 2, quarter = half / 2;
    const float coordinate[2] = {static_cast<float>(image_column), static_cast<float>(image_row)};
    float* turns = image.rotary.data() + row * 2 * half;
    for (int64_t k = 0; k < half; ++k) {
        const float angle = coordinate[k / quarter] * config_.rotary_frequencies[static_cast<size_t>(k % quarter)];
        turns[k] = static_cast<float>(std::cos(static_cast<double>(angle)));
        turns[half + k] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
}

void VisionLayers::norm_rows(const Machine& machine, VisionScratch& scratch, const ImageRows& image,
                             const Segment& rows, const std::vector<float>& weight, const std::vector<float>& bias,
                             const PackedMatrix& next) const {
    const int64_t c = config_.hidden_size;
    scratch.operand.shape_for(next, rows.count);
    float* normed = scratch.branch.reserve(rows.count, c);
    const float* hidden = image.hidden.data() + rows.first * c;
    for_rows(machine, rows.count, c * 4, [&](int64_t i) {
        machine.kernels.layer_norm(hidden + i * c, weight.data(), bias.data(), c, kLayerEps, normed + i * c);
        scratch.operand.prepare(machine.kernels, i, normed + i * c, c);
    });
}

void VisionLayers::project(const Machine& machine, VisionScratch& scratch, ImageRows& image, int64_t layer,
                           const SegmentPages& layout, const Segment& rows) const {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    const int64_t c = config_.hidden_size;
    norm_rows(machine, scratch, image, rows, l.norm1_weight, l.norm1_bias, l.projections);
    Epilogue with_bias;
    with_bias.bias = l.projections_bias.data();
    float* projected = scratch.projected.reserve(rows.count, 3 * c);
    multiply(machine, l.projections, scratch.operand, rows.count, projected, 3 * c, with_bias);
    fill_pages(machine, scratch, image, layout, rows);
}

void VisionLayers::attend(const Machine& machine, VisionScratch& scratch, ImageRows& image, int64_t layer,
                          const SegmentPages& layout, const Segment& rows) const {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    const int64_t c = config_.hidden_size, wide = config_.intermediate_size;
    float* branch = scratch.branch.reserve(rows.count, c);
    const auto add_branch = [&] {
        for_rows(machine, rows.count, c * 2, [&](int64_t i) {
            machine.kernels.add(image.hidden.data() + (rows.first + i) * c, branch + i * c, c);
        });
    };
    Epilogue with_bias;
    scratch.operand.shape_for(l.output, rows.count);
    attend_pages(machine, scratch, image, layout, rows);
    with_bias.bias = l.output_bias.data();
    multiply(machine, l.output, scratch.operand, rows.count, branch, c, with_bias);
    add_branch();

    norm_rows(machine, scratch, image, rows, l.norm2_weight, l.norm2_bias, l.fc1);
    float* activated = scratch.projected.reserve(rows.count, wide);
    with_bias.bias = l.fc1_bias.data();
    with_bias.gelu = true;
    multiply(machine, l.fc1, scratch.operand, rows.count, activated, wide, with_bias);
    scratch.operand.shape_for(l.fc2, rows.count);
    for_rows(machine, rows.count, wide,
             [&](int64_t i) { scratch.operand.prepare(machine.kernels, i, activated + i * wide, wide); });
    with_bias.bias = l.fc2_bias.data();
    with_bias.gelu = false;
    multiply(machine, l.fc2, scratch.operand, rows.count, branch, c, with_bias);
    add_branch();
}

}  // namespace musespark
