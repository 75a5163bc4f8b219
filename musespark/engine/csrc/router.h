// Which experts a token goes to, and with what weight: sigmoid scores in float32, in two manners.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "feed_forward.h"

namespace musespark {

class Router {
public:
    // muse_spark reads gate.weight and gate.e_score_correction_bias: the highest scores plus bias win, weights are the
    // scores without it, made to sum to routed_scaling_factor. llama4 reads router.weight: the highest logits win,
    // weights are their scores as they are.
    Router(TensorSource& source, const TextConfig& config, const std::string& prefix, const Machine& machine);

    // Fills picks and weights of all tokens, and sorts them by expert into slots, so that each expert's weights are
    // read once a step. rows (N, D).
    void route(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens) const;

private:
    void weigh(const Kernels& kernels, float* logits, int32_t* picks, float* weights) const;
    void sort_by_expert(FeedForwardScratch& scratch) const;

    const TextConfig& config_;
    PackedMatrix matrix_;                 // float32 in every precision: close scores decide which experts run
    std::vector<float> correction_bias_;  // empty for llama4
};

}  // namespace musespark
