// Feed-forward halves with experts. The experts themselves are the same; what they read, and how their outputs are put
// together, is the family's. Source: musespark/model/network/moe.py and llama4.py. Letters as in feed_forward.h.
#pragma once

#include <cstdint>
#include <string>

#include "feed_forward.h"
#include "router.h"

namespace musespark {

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
    SwigluStack experts_;
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
    SwigluStack experts_, shared_;
};

}  // namespace musespark
