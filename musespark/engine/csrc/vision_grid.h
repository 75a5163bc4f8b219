// The image tower of both Muse families: images of any grid of patches, attention within windows in most layers.
#pragma once

#include <cstdint>
#include <vector>

#include "vision_adapter.h"
#include "vision_layers.h"
#include "vision_tower.h"

namespace musespark {

class GridTower : public ImageTower {
public:
    GridTower(TensorSource& source, const VisionConfig& config, int64_t text_width, float eps, Format format,
              const Machine& machine);

    // The features are of unit mean square, as text embeddings are.
    void encode(const Machine& machine, const float* patches, int64_t rows, int64_t columns, float* features) override;

private:
    void order_patches(int64_t rows, int64_t columns);
    void embed(const Machine& machine, const float* patches, int64_t rows, int64_t columns);
    void add_position(float* row, int64_t patch, int64_t rows, int64_t columns) const;
    void merge(const Machine& machine, int64_t rows, int64_t columns);

    VisionConfig config_;
    GridImages images_;
    int64_t text_width_;
    float eps_;
    VisionLayers layers_;
    VisionAdapter adapter_;
    PackedMatrix patch_embedding_;
    std::vector<float> position_table_;  // (window^2, C)
    std::vector<float> ln_pre_weight_, ln_pre_bias_, ln_post_weight_, ln_post_bias_;
    VisionWorkspace work_;
    std::vector<int64_t> order_;  // (P) raster index of each row: window by window
    std::vector<Segment> windows_;
};

}  // namespace musespark
