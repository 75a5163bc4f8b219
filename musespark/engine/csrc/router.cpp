#include "router.h"

#include <algorithm>

namespace musespark {

namespace {

constexpr int64_t kRouterRows = 8;  // tokens whose scores are computed together

// The k of n with the largest preference(e); of equal ones the lower number. In ascending order, so that a token's sum
// over its experts has one order.
template <class Preference>
void pick(int64_t n, int64_t k, const Preference& preference, int32_t* picks) {
    int64_t picked = 0;  // picks[0, picked) are the best so far, the best first
    for (int64_t e = 0; e < n; ++e) {
        int64_t place = picked;
        while (place > 0 && preference(e) > preference(picks[place - 1])) --place;
        if (place == k) continue;
        picked = std::min(picked + 1, k);
        for (int64_t i = picked - 1; i > place; --i) picks[i] = picks[i - 1];
        picks[place] = static_cast<int32_t>(e);
    }
    std::sort(picks, picks + k);
}

}  // namespace

Router::Router(TensorSource& source, const TextConfig& config, const std::string& prefix, const Machine& machine)
    : config_(config) {
    const int64_t experts = config.num_local_experts;
    const bool latent = config.family->experts == Experts::latent;
    const std::string name = prefix + (latent ? "gate." : "router.");
    matrix_ = pack({source.get(name + "weight", {experts, config.hidden_size})}, Format::float32, machine.kernels,
                   machine.pool);
    if (latent) correction_bias_ = read_vector(source.get(name + "e_score_correction_bias", {experts}));
}

void Router::route(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens) const {
    const int64_t d = config_.hidden_size, experts = config_.num_local_experts, k = config_.num_experts_per_tok;
    float* logits = scratch.scores.reserve(num_tokens, experts);
    scratch.picks.resize(static_cast<size_t>(num_tokens * k));
    scratch.weights.resize(static_cast<size_t>(num_tokens * k));
    for_rows(machine, divide_up(num_tokens, kRouterRows), kRouterRows * d * divide_up(experts, kPanel),
             [&](int64_t block) {
                 const int64_t first = block * kRouterRows, count = std::min(kRouterRows, num_tokens - first);
                 const void* pointers[kRouterRows];
                 for (int64_t i = 0; i < count; ++i) pointers[i] = rows + (first + i) * d;
                 machine.kernels.gemm[static_cast<int>(Format::float32)](
                     block_of(matrix_, 0, pointers, count, 0, matrix_.num_panels, logits + first * experts, experts));
                 for (int64_t token = first; token < first + count; ++token) {
                     weigh(machine.kernels, logits + token * experts, &scratch.picks[static_cast<size_t>(token * k)],
                           &scratch.weights[static_cast<size_t>(token * k)]);
                 }
             });
    sort_by_expert(scratch);
}

// The picks and weights of one token; its logits are overwritten.
void Router::weigh(const Kernels& kernels, float* logits, int32_t* picks, float* weights) const {
    const int64_t experts = config_.num_local_experts, k = config_.num_experts_per_tok;
    if (correction_bias_.empty()) {
        pick(experts, k, [&](int64_t e) { return logits[e]; }, picks);
        for (int64_t i = 0; i < k; ++i) weights[i] = logits[picks[i]];
        kernels.sigmoid(weights, k);
        return;
    }
    kernels.scale(logits, config_.output_multiplier, experts);
    kernels.sigmoid(logits, experts);
    pick(experts, k, [&](int64_t e) { return logits[e] + correction_bias_[static_cast<size_t>(e)]; }, picks);
    float sum = 0.0F;
    for (int64_t i = 0; i < k; ++i) {
        weights[i] = logits[picks[i]];
        sum += weights[i];
    }
    for (int64_t i = 0; i < k; ++i) weights[i] = weights[i] / (sum + 1e-15F) * config_.routed_scaling_factor;
}

void Router::sort_by_expert(FeedForwardScratch& scratch) const {
    const auto k = static_cast<size_t>(config_.num_experts_per_tok);
    const size_t num_slots = scratch.picks.size();
    scratch.starts.assign(static_cast<size_t>(config_.num_local_experts) + 1, 0);
    for (const int32_t expert : scratch.picks) ++scratch.starts[static_cast<size_t>(expert) + 1];
    for (size_t e = 1; e < scratch.starts.size(); ++e) scratch.starts[e] += scratch.starts[e - 1];
    scratch.next.assign(scratch.starts.begin(), scratch.starts.end());
    scratch.slots.resize(num_slots);
    scratch.tokens.resize(num_slots);
    for (size_t i = 0; i < num_slots; ++i) {
        const int64_t slot = scratch.next[static_cast<size_t>(scratch.picks[i])]++;
        scratch.slots[i] = slot;
        scratch.tokens[static_cast<size_t>(slot)] = static_cast<int64_t>(i / k);
    }
}

}  // namespace musespark
