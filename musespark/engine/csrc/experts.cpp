#include "experts.h"

#include <algorithm>

namespace musespark {

namespace {

PackedMatrix load(TensorSource& source, const std::string& name, const std::vector<int64_t>& shape, Format format,
                  const Machine& machine) {
    return pack({source.get(name, shape)}, format, machine.kernels, machine.pool);
}

SwigluStack load_experts(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
                         const Machine& machine) {
    const int64_t experts = config.num_local_experts, read = config.moe_hidden_size;
    const int64_t wide = config.moe_intermediate_size;
    return {load(source, prefix + "gate_up_proj", {experts, 2 * wide, read}, format, machine),
            load(source, prefix + "down_proj", {experts, read, wide}, format, machine)};
}

}  // namespace

LatentExperts::LatentExperts(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
                             const Machine& machine)
    : config_(config),
      router_(source, config, prefix, machine),
      experts_(load_experts(source, config, prefix + "experts.", format, machine)) {
    const int64_t d = config.hidden_size, latent = config.moe_hidden_size;
    const float offset = config.family->norm_offset;
    pre_expert_ = load(source, prefix + "pre_expert_proj.weight", {latent, d}, format, machine);
    pre_expert_norm_ = read_vector(source.get(prefix + "pre_expert_norm.weight", {latent}), offset);
    post_expert_norm_ = read_vector(source.get(prefix + "experts.post_expert_norm.weight", {latent}), offset);
    post_expert_ = load(source, prefix + "post_expert_proj.weight", {d, latent}, format, machine);
}

void LatentExperts::forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens,
                            float* out) const {
    const Kernels& kernels = machine.kernels;
    const int64_t d = config_.hidden_size, latent_size = config_.moe_hidden_size, k = config_.num_experts_per_tok;
    router_.route(machine, scratch, rows, num_tokens);
    scratch.input.shape_for(pre_expert_, num_tokens);
    prepare_rows(machine, rows, num_tokens, d, scratch.input);
    float* latent = scratch.expert_rows.reserve(num_tokens, latent_size);
    multiply(machine, pre_expert_, scratch.input, num_tokens, latent, latent_size);
    const int64_t num_slots = num_tokens * k;
    scratch.experts.begin(experts_, num_tokens, num_slots);
    for_rows(machine, num_tokens, latent_size * 4, [&](int64_t token) {
        float* row = latent + token * latent_size;
        kernels.rms_norm(row, pre_expert_norm_.data(), latent_size, config_.rms_norm_eps, row);
        scratch.experts.prepare(kernels, token, row);
    });
    float* expert_out = scratch.expert_out.reserve(num_slots, latent_size);
    SwigluRows::forward(machine, scratch.products,
                        {{scratch.experts, scratch.starts.data(), scratch.tokens.data(), expert_out}});

    scratch.sum_input.shape_for(post_expert_, num_tokens);
    for_rows(machine, num_tokens, latent_size * 4 * k, [&](int64_t token) {
        float* sum = latent + token * latent_size;
        std::fill_n(sum, latent_size, 0.0F);
        for (int64_t i = token * k; i < (token + 1) * k; ++i) {
            // The norm comes before the routing weight: it is not linear, so the order matters.
            float* row = expert_out + scratch.slots[static_cast<size_t>(i)] * latent_size;
            kernels.input_scaled_norm(row, post_expert_norm_.data(), latent_size, config_.post_norm_eps, row);
            kernels.add_scaled(sum, row, scratch.weights[static_cast<size_t>(i)], latent_size);
        }
        scratch.sum_input.prepare(kernels, token, sum, latent_size);
    });
    multiply(machine, post_expert_, scratch.sum_input, num_tokens, out, d);
}

ScoredExperts::ScoredExperts(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
                             const Machine& machine)
    : config_(config),
      router_(source, config, prefix, machine),
      experts_(load_experts(source, config, prefix + "experts.", format, machine)),
      shared_(
          load_dense(source, config, config.moe_intermediate_size, prefix + "shared_expert.", format, machine)) {}

void ScoredExperts::forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens,
                            float* out) const {
    const Kernels& kernels = machine.kernels;
    const int64_t d = config_.hidden_size, k = config_.num_experts_per_tok, num_slots = num_tokens * k;
    router_.route(machine, scratch, rows, num_tokens);
    float* scored = scratch.expert_rows.reserve(num_slots, d);
    float* expert_out = scratch.expert_out.reserve(num_slots, d);
    scratch.dense.begin(shared_, num_tokens, num_tokens);
    scratch.experts.begin(experts_, num_slots, num_slots);
    for_rows(machine, num_tokens, d * (2 + 3 * k), [&](int64_t token) {
        scratch.dense.prepare(kernels, token, rows + token * d);
        for (int64_t i = token * k; i < (token + 1) * k; ++i) {
            const int64_t slot = scratch.slots[static_cast<size_t>(i)];
            float* row = scored + slot * d;
            std::copy_n(rows + token * d, d, row);
            kernels.scale(row, scratch.weights[static_cast<size_t>(i)], d);
            scratch.experts.prepare(kernels, slot, row);
        }
    });
    const int64_t all[] = {0, num_tokens};
    SwigluRows::forward(
        machine, scratch.products,
        {{scratch.dense, all, nullptr, out}, {scratch.experts, scratch.starts.data(), nullptr, expert_out}});
    for_rows(machine, num_tokens, d * 2 * k, [&](int64_t token) {
        for (int64_t i = token * k; i < (token + 1) * k; ++i) {
            kernels.add(out + token * d, expert_out + scratch.slots[static_cast<size_t>(i)] * d, d);
        }
    });
}

}  // namespace musespark
