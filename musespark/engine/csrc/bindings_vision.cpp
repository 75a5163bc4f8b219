#include "bindings_vision.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace musespark {

VisionConfig vision_config(const nb::dict& d) {
    const auto size = [&](const char* name) { return nb::cast<int64_t>(d[name]); };
    VisionConfig c;
    c.hidden_size = size("hidden_size");
    c.intermediate_size = size("intermediate_size");
    c.num_hidden_layers = size("num_hidden_layers");
    c.num_attention_heads = size("num_attention_heads");
    c.patch_size = size("patch_size");
    c.merge_size = size("merge_size");
    c.projector_hidden_size = size("projector_hidden_size");
    c.rotary_frequencies = nb::cast<std::vector<float>>(d["rotary_frequencies"]);
    const auto kind = nb::cast<std::string>(d["kind"]);
    if (kind == "grid") {
        GridImages grid;
        grid.window = size("window");
        grid.layer_norm_eps = nb::cast<float>(d["layer_norm_eps"]);
        grid.swapped_axes = nb::cast<bool>(d["swapped_axes"]);
        grid.full_attention = nb::cast<std::vector<bool>>(d["full_attention"]);
        c.images = grid;
    } else if (kind == "tiles") {
        c.images = TileImages{size("side")};
    } else {
        throw std::invalid_argument("an image tower is of kind '" + kind + "'; it must be grid or tiles");
    }
    return c;
}

}  // namespace musespark
