// The feed-forward half of a decoder layer: what all kinds have in common, and the dense SwiGLU. Those with experts are
// in experts.h. Letters: N tokens, D hidden, m width of what experts read, F expert width, E experts, k picks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "config.h"
#include "operand.h"
#include "products.h"
#include "swiglu.h"
#include "weights.h"

namespace musespark {

// Scratch rows shared by all layers; a slot is one (token, picked expert) pair, slots are sorted by expert.
struct FeedForwardScratch {
    Operand input, sum_input;
    SwigluRows dense, experts;    // through a dense layer or a shared expert, and through the experts
    Products products;
    Scratch<float> scores;        // (N, E)
    Scratch<float> expert_rows;   // (N or slots, m): what experts read
    Scratch<float> expert_out;    // (slots, m)
    std::vector<int32_t> picks;   // (N, k) experts, ascending
    std::vector<float> weights;   // (N, k)
    std::vector<int64_t> slots;   // (N, k) slot of each pick
    std::vector<int64_t> tokens;  // (slots) token of each slot
    std::vector<int64_t> starts;  // (E + 1) first slot of each expert
    std::vector<int64_t> next;    // (E + 1) where the next slot of each expert goes while sorting
};

class FeedForward {
public:
    virtual ~FeedForward() = default;

    // rows (N, D) normed -> out (N, D).
    virtual void forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens,
                         float* out) const = 0;
};

// What the configuration says that a layer has. `prefix` is that of the layer.
std::unique_ptr<FeedForward> load_feed_forward(TensorSource& source, const TextConfig& config, bool sparse,
                                               const std::string& prefix, Format format, const Machine& machine);

class DenseMlp : public FeedForward {
public:
    // `prefix` ends before gate_proj, up_proj and down_proj.
    DenseMlp(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
             const Machine& machine);

    void forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens,
                 float* out) const override;

private:
    SwigluStack mlp_;
};

// A single SwiGLU whose width between is `wide`; `prefix` as above.
SwigluStack load_dense(TensorSource& source, const TextConfig& config, int64_t wide, const std::string& prefix,
                       Format format, const Machine& machine);

// `count` rows into `operand`, prepared for products.
void prepare_rows(const Machine& machine, const float* rows, int64_t count, int64_t width, Operand& operand);

}  // namespace musespark
