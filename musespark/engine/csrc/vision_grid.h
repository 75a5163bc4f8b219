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

protected:
    void check_grid(int64_t rows, int64_t columns) const override;
    int64_t arrange(ImageEncoding& encoding) const override;
    size_t layout_of(int64_t layer) const override {
        return images_.full_attention[static_cast<size_t>(layer)] ? kWhole : kWindows;
    }
    const VisionLayers& layers() const override { return layers_; }
    void embed(const Machine& machine, ImageEncoding& encoding, const Segment& rows) override;
    // The features are of unit mean square, as text embeddings are.
    void finish(const Machine& machine, ImageEncoding& encoding, const Segment& cells) override;

private:
    static constexpr size_t kWhole = 0, kWindows = 1;  // layouts

    void add_position(float* row, int64_t patch, int64_t rows, int64_t columns) const;

    GridImages images_;
    int64_t text_width_;
    float eps_;
    VisionLayers layers_;
    VisionAdapter adapter_;
    PackedMatrix patch_embedding_;
    std::vector<float> position_table_;  // (window^2, C)
    std::vector<float> ln_pre_weight_, ln_pre_bias_, ln_post_weight_, ln_post_bias_;
};

}  // namespace musespark
