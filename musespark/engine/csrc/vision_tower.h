// An image tower with its adapter and projection: patches to features in the width of the text. The towers are
// vision_grid.cpp and vision_tiles.cpp; vision_layers.h and vision_adapter.h are what they share. Source:
// musespark/model/network/vision.py and tiles.py; letters as there: P patches, C tower width, D text width.
#pragma once

#include <cstdint>
#include <memory>

#include "operand.h"
#include "vision_config.h"
#include "weights.h"

namespace musespark {

class ImageTower {
public:
    virtual ~ImageTower() = default;

    // patches (rows * columns, 3 * patch_size^2) in raster order -> features (rows * columns / merge_size^2, D).
    // Throws std::invalid_argument for a grid that the tower can't take.
    virtual void encode(const Machine& machine, const float* patches, int64_t rows, int64_t columns,
                        float* features) = 0;
};

// `format` is float32 or bfloat16; `text_width` and `eps` are those of the text model that takes the features. Throws
// std::invalid_argument for a shape or a tensor that doesn't fit.
std::unique_ptr<ImageTower> make_tower(TensorSource& source, const VisionConfig& config, int64_t text_width, float eps,
                                       Format format, const Machine& machine);

}  // namespace musespark
