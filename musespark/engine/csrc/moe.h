// The feed-forward half of a decoder layer: a latent mixture of experts behind a float32 sigmoid router, or a dense
// SwiGLU. Tokens are sorted by expert, so each expert's weights are read once a step. Source: muse_spark as in
// musespark/model/network/moe.py, whose letters are used here: D hidden, m latent width, F expert width, E experts, k
// picks.
#pragma once

#include <string>
#include <vector>

#include "config.h"
#include "operand.h"
#include "weights.h"

namespace musespark {

// A part of one expert's product: slots [first_slot, first_slot + num_slots), panels [first_panel, first_panel +
// num_panels).
struct ExpertTask {
    int64_t expert, first_slot, num_slots, first_panel, num_panels;
};

// Scratch rows shared by all layers; a slot is one (token, picked expert) pair, slots are sorted by expert.
struct FeedForwardScratch {
    Operand input, latent_input, wide_input, sum_input;
    Scratch<float> scores;        // (N, E)
    Scratch<float> latent;        // (N, m)
    Scratch<float> wide;          // (slots, 2F), or (N, 2 * intermediate) of a dense layer
    Scratch<float> expert_out;    // (slots, m)
    std::vector<int32_t> picks;   // (N, k) experts, ascending
    std::vector<float> weights;   // (N, k)
    std::vector<int64_t> slots;   // (N, k) slot of each pick
    std::vector<int64_t> tokens;  // (slots) token of each slot
    std::vector<int64_t> starts;  // (E + 1) first slot of each expert
    std::vector<int64_t> next;    // (E + 1) where the next slot of each expert goes while sorting
    std::vector<ExpertTask> tasks;
};

class MixtureOfExperts {
public:
    MixtureOfExperts(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
                     const Machine& machine);

    // rows (N, D) normed -> out (N, D).
    void forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens,
                 float* out) const;

private:
    void route(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens) const;
    void pick(const float* scores, int32_t* picks, float* weights) const;
    void sort_by_expert(FeedForwardScratch& scratch) const;

    const TextConfig& config_;
    PackedMatrix router_;  // float32 in every precision: close scores decide which experts run
    std::vector<float> correction_bias_;
    PackedMatrix pre_expert_, gate_up_, down_, post_expert_;
    std::vector<float> pre_expert_norm_, post_expert_norm_;
};

class DenseMlp {
public:
    DenseMlp(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
             const Machine& machine);

    // rows (N, D) normed -> out (N, D).
    void forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens,
                 float* out) const;

private:
    const TextConfig& config_;
    PackedMatrix gate_up_, down_;
};

}  // namespace musespark
