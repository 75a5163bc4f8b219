#include "vision_grid.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace musespark {

namespace {

constexpr VisionLayerNames kLayerNames = {"norm1", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", "norm2"};
constexpr VisionAdapterNames kAdapterNames = {"model.vision_adapter.fc1.weight", "model.vision_adapter.fc2.weight",
                                              "model.vision_projection.weight"};

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
    result.held_bytes = tensor.held_bytes;
    return result;
}

}  // namespace

GridTower::GridTower(TensorSource& source, const VisionConfig& config, int64_t text_width, float eps, Format format,
                     const Machine& machine)
    : ImageTower(config),
      images_(std::get<GridImages>(config.images)),
      text_width_(text_width),
      eps_(eps),
      layers_(source, config, "model.vision_tower.layers.", kLayerNames, machine.kernels.rotate, format, machine),
      adapter_(source, config, kAdapterNames, text_width, format, machine) {
    scratch_ = layers_.scratch(machine);
    const int64_t c = config_.hidden_size, frame = config_.frame_size();
    const std::string prefix = "model.vision_tower.";
    const auto vector = [&](const char* name) { return read_vector(source.get(prefix + name, {c})); };
    const Tensor embedding = source.get(prefix + "patch_embedder.patch_embedding.weight", {c, 2 * frame});
    patch_embedding_ = pack({sum_of_frames(embedding, c, frame)}, format, machine.kernels, machine.pool);
    position_table_ = read_vector(
        source.get(prefix + "patch_embedder.position_embedding_table.weight", {images_.window * images_.window, c}));
    ln_pre_weight_ = vector("ln_pre.weight");
    ln_pre_bias_ = vector("ln_pre.bias");
    ln_post_weight_ = vector("ln_post.weight");
    ln_post_bias_ = vector("ln_post.bias");
}

void GridTower::check_grid(int64_t rows, int64_t columns) const {
    const int64_t m = config_.merge_size;
    if (rows < 1 || columns < 1 || rows % m || columns % m) {
        throw std::invalid_argument("an image of " + std::to_string(rows) + " x " + std::to_string(columns) +
                                    " patches can't be merged; both must be positive multiples of " +
                                    std::to_string(m));
    }
}

// Tiles of window x window patches from the top left, ragged at the right and bottom; all that follows is in this
// order.
int64_t GridTower::arrange(ImageEncoding& encoding) const {
    const int64_t rows = encoding.rows, columns = encoding.columns, side = images_.window;
    std::vector<int64_t>& order = encoding.raster;
    std::vector<Segment> windows;
    for (int64_t top = 0; top < rows; top += side) {
        for (int64_t left = 0; left < columns; left += side) {
            const auto first = static_cast<int64_t>(order.size());
            for (int64_t y = top; y < std::min(rows, top + side); ++y) {
                for (int64_t x = left; x < std::min(columns, left + side); ++x) order.push_back(y * columns + x);
            }
            windows.push_back({first, static_cast<int64_t>(order.size()) - first});
        }
    }
    encoding.row_at.resize(order.size());
    for (size_t row = 0; row < order.size(); ++row) encoding.row_at[static_cast<size_t>(order[row])] = row;
    encoding.layouts.emplace_back(std::vector<Segment>{{0, rows * columns}});
    encoding.layouts.emplace_back(std::move(windows));
    return rows * columns;
}

void GridTower::embed(const Machine& machine, ImageEncoding& encoding, const Segment& rows) {
    const int64_t c = config_.hidden_size, frame = config_.frame_size();
    const auto patch_of = [&](int64_t i) { return encoding.raster[static_cast<size_t>(rows.first + i)]; };
    scratch_.operand.shape_for(patch_embedding_, rows.count);
    for_rows(machine, rows.count, frame, [&](int64_t i) {
        scratch_.operand.prepare(machine.kernels, i, encoding.patches + patch_of(i) * frame, frame);
    });
    float* hidden = encoding.image.hidden.data() + rows.first * c;
    multiply(machine, patch_embedding_, scratch_.operand, rows.count, hidden, c);
    for_rows(machine, rows.count, c * 6 + config_.head_dim() * 32, [&](int64_t i) {
        const int64_t patch = patch_of(i), columns = encoding.columns;
        float* row = hidden + i * c;
        add_position(row, patch, encoding.rows, columns);
        machine.kernels.layer_norm(row, ln_pre_weight_.data(), ln_pre_bias_.data(), c, images_.layer_norm_eps, row);
        // Places count from 1: the reference keeps 0 for a class token that this tower does not have.
        layers_.place(encoding.image, rows.first + i, patch % columns + 1, patch / columns + 1);
    });
}

// The square table, sampled bilinearly with zeros outside. Patch n reads the sample of its own place, or with swapped
// axes the one at row n / rows, column n % rows of a columns x rows grid: for grids that are not square a scramble, and
// the one that the published weights of muse_spark were trained with.
void GridTower::add_position(float* row, int64_t patch, int64_t rows, int64_t columns) const {
    if (images_.swapped_axes) std::swap(rows, columns);
    const int64_t side = images_.window, c = config_.hidden_size;
    const auto sample = [&](int64_t i, int64_t count) {
        return (static_cast<float>(i) + 0.5F) * static_cast<float>(side) / static_cast<float>(count) - 0.5F;
    };
    const float y = sample(patch / columns, rows), x = sample(patch % columns, columns);
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

// ln_post, then merge_size x merge_size patches to one row, channel-major: entry channel * merge_size^2 + dy *
// merge_size + dx. Then the adapter.
void GridTower::finish(const Machine& machine, ImageEncoding& encoding, const Segment& cells) {
    const int64_t c = config_.hidden_size, m = config_.merge_size, columns = encoding.columns;
    float* merged = scratch_.merged.reserve(cells.count, config_.merged_size());
    for_rows(machine, cells.count, config_.merged_size() * 8, [&](int64_t i) {
        const int64_t cell = cells.first + i, top = cell / (columns / m) * m, left = cell % (columns / m) * m;
        for (int64_t part = 0; part < m * m; ++part) {
            const int64_t patch = (top + part / m) * columns + left + part % m;
            float* row = encoding.image.hidden.data() + encoding.row_at[static_cast<size_t>(patch)] * c;
            machine.kernels.layer_norm(row, ln_post_weight_.data(), ln_post_bias_.data(), c, images_.layer_norm_eps,
                                       row);
            float* out = merged + i * config_.merged_size() + part;
            for (int64_t k = 0; k < c; ++k) out[k * m * m] = row[k];
        }
    });
    float* features = encoding.features + cells.first * text_width_;
    adapter_.run(machine, scratch_, cells.count, features);
    for_rows(machine, cells.count, text_width_ * 2, [&](int64_t i) {
        float* row = features + i * text_width_;
        machine.kernels.rms_norm(row, nullptr, text_width_, eps_, row);
    });
}

}  // namespace musespark
