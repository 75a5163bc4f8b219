// How what a half of a layer computed, its branch, joins the residual stream: normed or not, by a learned gate for each
// channel or as a plain sum.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config.h"
#include "kernels.h"
#include "weights.h"

namespace musespark {

class Branch {
public:
    // `prefix` is that of the layer and the half, "….layers.3.post_attention_"; what the branch has no use for is not
    // read.
    Branch(TensorSource& source, const TextConfig& config, BranchNorm norm, const std::string& prefix);

    // Add a row to its residual, D floats each. The row is overwritten.
    void join(const Kernels& kernels, float* residual, float* row) const;

private:
    BranchNorm norm_;
    int64_t width_;
    float eps_;
    std::vector<float> weight_;        // of the norm, if it has one
    std::vector<float> alpha_, beta_;  // of residual and row; empty for a plain sum
};

}  // namespace musespark
