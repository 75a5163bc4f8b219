#include "vision_tower.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "vision_grid.h"
#include "vision_tiles.h"

namespace musespark {

namespace {

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("the configuration can't be run: ") + what);
}

void require_size(int64_t size) {
    require(size >= 1 && size <= int64_t{1} << 31, "a size of the vision tower is not positive, or is above 2^31");
}

// What the code relies on for its own safety; musespark/model/families gives the friendlier messages.
void check(const VisionConfig& c) {
    for (const int64_t size : {c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads,
                               c.patch_size, c.merge_size, c.projector_hidden_size}) {
        require_size(size);
    }
    require(c.hidden_size % c.num_attention_heads == 0 && c.head_dim() % 4 == 0,
            "vision heads must have a multiple of 4 channels");
    require(static_cast<int64_t>(c.rotary_frequencies.size()) == c.head_dim() / 4,
            "one vision frequency per pair is needed");
    if (const auto* grid = std::get_if<GridImages>(&c.images)) {
        require_size(grid->window);
        require(static_cast<int64_t>(grid->full_attention.size()) == c.num_hidden_layers,
                "one kind per vision layer is needed");
    } else {
        const int64_t side = std::get<TileImages>(c.images).side;
        require_size(side);
        require(side % c.merge_size == 0, "the patches of a tile can't be merged");
    }
}

// Rows in a unit: about 3 billion multiplications and additions in half a layer, ten milliseconds of two cores; but enough
// that reading the weights is not what takes the time, and in whole tasks of the products.
int64_t rows_in_unit(const VisionConfig& c) {
    const double row = 2.0 * static_cast<double>(c.hidden_size) *
                       (4.0 * static_cast<double>(c.hidden_size) + 2.0 * static_cast<double>(c.intermediate_size));
    return std::clamp(static_cast<int64_t>(3e9 / row) / kRowBlock, int64_t{2}, int64_t{16}) * kRowBlock;
}

}  // namespace

ImageTower::ImageTower(const VisionConfig& config) : config_(config), unit_rows_(rows_in_unit(config)) {}

std::unique_ptr<ImageEncoding> ImageTower::start(const float* patches, int64_t rows, int64_t columns,
                                                 float* features) const {
    check_grid(rows, columns);
    auto encoding = std::make_unique<ImageEncoding>();
    encoding->tower = this;
    encoding->patches = patches;
    encoding->features = features;
    encoding->rows = rows;
    encoding->columns = columns;
    const int64_t count = arrange(*encoding);
    layers().reserve(encoding->image, count, encoding->layouts);
    encoding->num_cells = rows * columns / (config_.merge_size * config_.merge_size);
    encoding->num_units = divide_up(count, unit_rows_) * (1 + 2 * config_.num_hidden_layers) +
                          divide_up(encoding->num_cells, unit_rows_);
    encoding->num_done = 0;
    return encoding;
}

void ImageTower::advance(const Machine& machine, ImageEncoding& encoding) {
    const int64_t count = encoding.image.count, blocks = divide_up(count, unit_rows_);
    const int64_t half_layers = 2 * config_.num_hidden_layers;
    const int64_t unit = encoding.num_done, phase = std::min(unit / blocks, 1 + half_layers);
    const int64_t first = (unit - phase * blocks) * unit_rows_;
    const auto part_of = [&](int64_t total) { return Segment{first, std::min(unit_rows_, total - first)}; };
    if (phase == 0) {
        embed(machine, encoding, part_of(count));
    } else if (phase <= half_layers) {
        const int64_t layer = (phase - 1) / 2;
        const SegmentPages& layout = encoding.layouts[layout_of(layer)];
        if (phase % 2 == 1) {
            layers().project(machine, scratch_, encoding.image, layer, layout, part_of(count));
        } else {
            layers().attend(machine, scratch_, encoding.image, layer, layout, part_of(count));
        }
    } else {
        finish(machine, encoding, part_of(encoding.num_cells));
    }
    ++encoding.num_done;
}

std::unique_ptr<ImageTower> make_tower(TensorSource& source, const VisionConfig& config, int64_t text_width, float eps,
                                       Format format, const Machine& machine) {
    check(config);
    if (std::holds_alternative<GridImages>(config.images)) {
        return std::make_unique<GridTower>(source, config, text_width, eps, format, machine);
    }
    return std::make_unique<TileTower>(source, config, text_width, format, machine);
}

}  // namespace musespark
