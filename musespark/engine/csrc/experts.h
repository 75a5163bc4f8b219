// Feed-forward halves with experts. The experts themselves are the same; what they read, and how their outputs are put
// together, is the family's. Source: musespark/model/network/moe.py and llama4.py. Letters as in feed_forward.h.
#pragma once

#include <cstdint>
#include <string>

#include "feed_forward.h"
#include "router.h"

namespace musespark {

// A SwiGLU for each expert, from m to F to m.
class ExpertStack {
public:
    ExpertStack(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
                const Machine& machine);

    // Make `scratch.expert_input` take rows of the first product.
    void shape_input(FeedForwardScratch& scratch, int64_t rows) const {
        scratch.expert_input.shape_for(gate_up_, rows);
    }

    // Outputs (slots, m) in scratch.expert_out; the slot's input is row `row_of_slot(slot)` of scratch.expert_input.
    template <class RowOfSlot>
    float* forward(const Machine& machine, FeedForwardScratch& scratch, const RowOfSlot& row_of_slot) const;

private:
    PackedMatrix gate_up_, down_;
};

// muse_spark: experts read the token in a narrower space, their outputs are normed and then summed by weight.
class LatentExperts : public FeedForward {
public:
    LatentExperts(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
                  const Machine& machine);

    void forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens,
                 float* out) const override;

private:
    const TextConfig& config_;
    Router router_;
    ExpertStack experts_;
    PackedMatrix pre_expert_, post_expert_;
    std::vector<float> pre_expert_norm_, post_expert_norm_;
};

// llama4: experts read the token times its score (with SwiGLU not the same as scaling what they say), and their sum is
// added to what a shared expert makes of the token as it is.
class ScoredExperts : public FeedForward {
public:
    ScoredExperts(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
                  const Machine& machine);

    void forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens,
                 float* out) const override;

private:
    const TextConfig& config_;
    Router router_;
    ExpertStack experts_;
    DenseMlp shared_;
};

}  // namespace musespark
