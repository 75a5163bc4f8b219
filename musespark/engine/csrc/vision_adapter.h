// From merged cells to the width of the text, in both image towers: two matrices with an exact GELU behind each, and a
// projection, all without biases.
#pragma once

#include <cstdint>

#include "vision_layers.h"

namespace musespark {

// Whole names of the tensors.
struct VisionAdapterNames {
    const char *fc1, *fc2, *projection;
};

class VisionAdapter {
public:
    VisionAdapter(TensorSource& source, const VisionConfig& config, const VisionAdapterNames& names, int64_t text_width,
                  Format format, const Machine& machine);

    // scratch.merged (num_cells, C * merge_size^2) -> features (num_cells, D)
    void run(const Machine& machine, VisionScratch& scratch, int64_t num_cells, float* features) const;

    int64_t width() const { return projection_.out; }  // D

private:
    PackedMatrix fc1_, fc2_, projection_;
};

}  // namespace musespark
