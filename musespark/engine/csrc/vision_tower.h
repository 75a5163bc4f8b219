// An image tower with its adapter and projection: patches to features in the width of the text. The towers are
// vision_grid.cpp and vision_tiles.cpp; vision_layers.h and vision_adapter.h are what they share. Source:
// musespark/model/network/vision.py and tiles.py; letters as there: P patches, C tower width, D text width.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "operand.h"
#include "vision_config.h"
#include "vision_layers.h"
#include "weights.h"

namespace musespark {

class ImageTower;

// An image on its way through a tower. The work is cut into units, so that others can have the machine between them: the
// patches of some rows, for each layer the first halves and then the second halves of some rows, the features of some
// cells. Rows do not depend on how they are grouped, so the features do not depend on the cuts.
struct ImageEncoding {
    const ImageTower* tower;
    const float* patches;
    float* features;
    int64_t rows, columns;              // of patches
    ImageRows image;                    // in the tower's order
    std::vector<SegmentPages> layouts;  // which rows see each other; by layer, one of these
    std::vector<int64_t> raster;        // of each row, where it stands in the image; empty: row i at i
    std::vector<int64_t> row_at;        // the other way round
    int64_t num_cells;
    int64_t num_units;
    std::atomic<int64_t> num_done;  // anybody may ask how far it is
};

class ImageTower {
public:
    explicit ImageTower(const VisionConfig& config);
    virtual ~ImageTower() = default;

    // patches (rows * columns, 3 * patch_size^2) in raster order -> features (rows * columns / merge_size^2, D); both
    // must live as long as the encoding. Throws std::invalid_argument for a grid that the tower can't take.
    std::unique_ptr<ImageEncoding> start(const float* patches, int64_t rows, int64_t columns, float* features) const;

    // One unit of work; there must be one left.
    void advance(const Machine& machine, ImageEncoding& encoding);

protected:
    virtual void check_grid(int64_t rows, int64_t columns) const = 0;
    // Fill layouts, raster and row_at; returns the number of rows.
    virtual int64_t arrange(ImageEncoding& encoding) const = 0;
    virtual size_t layout_of(int64_t layer) const = 0;
    virtual const VisionLayers& layers() const = 0;
    // Patches to rows of image.hidden and image.rotary.
    virtual void embed(const Machine& machine, ImageEncoding& encoding, const Segment& rows) = 0;
    // Rows to features of some cells; a cell is merge_size x merge_size patches.
    virtual void finish(const Machine& machine, ImageEncoding& encoding, const Segment& cells) = 0;

    VisionConfig config_;
    VisionScratch scratch_;

private:
    int64_t unit_rows_;
};

// `format` is float32 or bfloat16; `text_width` and `eps` are those of the text model that takes the features. Throws
// std::invalid_argument for a shape or a tensor that doesn't fit.
std::unique_ptr<ImageTower> make_tower(TensorSource& source, const VisionConfig& config, int64_t text_width, float eps,
                                       Format format, const Machine& machine);

}  // namespace musespark
