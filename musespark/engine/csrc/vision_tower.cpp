#include "vision_tower.h"

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

}  // namespace

std::unique_ptr<ImageTower> make_tower(TensorSource& source, const VisionConfig& config, int64_t text_width, float eps,
                                       Format format, const Machine& machine) {
    check(config);
    if (std::holds_alternative<GridImages>(config.images)) {
        return std::make_unique<GridTower>(source, config, text_width, eps, format, machine);
    }
    return std::make_unique<TileTower>(source, config, text_width, format, machine);
}

}  // namespace musespark
