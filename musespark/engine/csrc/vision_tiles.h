// The image tower of Llama 4: a square tile at a time, its patches in raster order and a class token behind them, which
// leaves with the last layer.
#pragma once

#include <cstdint>
#include <vector>

#include "vision_adapter.h"
#include "vision_layers.h"
#include "vision_tower.h"

namespace musespark {

class TileTower : public ImageTower {
public:
    TileTower(TensorSource& source, const VisionConfig& config, int64_t text_width, Format format,
              const Machine& machine);

protected:
    // One tile: rows and columns must be the tower's side.
    void check_grid(int64_t rows, int64_t columns) const override;
    int64_t arrange(ImageEncoding& encoding) const override;
    size_t layout_of(int64_t) const override { return 0; }
    const VisionLayers& layers() const override { return layers_; }
    void embed(const Machine& machine, ImageEncoding& encoding, const Segment& rows) override;
    void finish(const Machine& machine, ImageEncoding& encoding, const Segment& cells) override;

private:
    int64_t side_;
    VisionLayers layers_;
    VisionAdapter adapter_;
    PackedMatrix patch_embedding_;
    std::vector<float> class_embedding_;  // (C)
    std::vector<float> positions_;        // (side^2 + 1, C), the last that of the class token
    std::vector<float> pre_weight_, pre_bias_, post_weight_, post_bias_;
};

}  // namespace musespark
