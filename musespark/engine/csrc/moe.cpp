#include "moe.h"

#include <algorithm>

namespace musespark {

namespace {

constexpr int64_t kRouterRows = 8;  // tokens whose scores are computed together

// out[slot] = matrix of the slot's expert times row_of_slot(slot), for all slots, whose experts ascend.
template <class RowOfSlot>
void multiply_experts(const Machine& machine, FeedForwardScratch& scratch, const PackedMatrix& matrix,
                      const RowOfSlot& row_of_slot, float* out) {
    scratch.tasks.clear();
    int64_t panels = 0;
    for (int64_t expert = 0; expert < matrix.num_matrices; ++expert) {
        const int64_t begin = scratch.starts[static_cast<size_t>(expert)];
        const int64_t end = scratch.starts[static_cast<size_t>(expert) + 1];
        if (begin == end) continue;
        panels = panels_per_task(matrix, std::min(end - begin, kRowBlock));
        for (int64_t panel = 0; panel < matrix.num_panels; panel += panels) {
            for (int64_t slot = begin; slot < end; slot += kRowBlock) {
                scratch.tasks.push_back({expert, slot, std::min(kRowBlock, end - slot), panel, panels});
            }
        }
    }
    const auto gemm = machine.kernels.gemm[static_cast<int>(matrix.format)];
    machine.pool.run(static_cast<int64_t>(scratch.tasks.size()), [&](int64_t index, int) {
        const ExpertTask& task = scratch.tasks[static_cast<size_t>(index)];
        const void* rows[kRowBlock];
        for (int64_t i = 0; i < task.num_slots; ++i) rows[i] = row_of_slot(task.first_slot + i);
        gemm(block_of(matrix, task.expert, rows, task.num_slots, task.first_panel, task.num_panels,
                      out + task.first_slot * matrix.out, matrix.out));
    });
}

// silu(gate) * up of rows of [gate, up], prepared for `down`.
void activate(const Machine& machine, float* rows, int64_t count, int64_t width, Operand& operand) {
    for_rows(machine, count, width * 8, [&](int64_t index) {
        float* row = rows + index * 2 * width;
        machine.kernels.silu_multiply(row, row + width, width, row);
        operand.prepare(machine.kernels, index, row, width);
    });
}

}  // namespace

MixtureOfExperts::MixtureOfExperts(TensorSource& source, const TextConfig& config, const std::string& prefix,
                                   Format format, const Machine& machine)
    : config_(config) {
    const int64_t d = config.hidden_size, latent = config.moe_hidden_size, wide = config.moe_intermediate_size;
    const int64_t experts = config.num_local_experts;
    const auto load = [&](const char* name, const std::vector<int64_t>& shape, Format as) {
        return pack({source.get(prefix + name, shape)}, as, machine.kernels, machine.pool);
    };
    router_ = load("gate.weight", {experts, d}, Format::float32);
    correction_bias_ = read_vector(source.get(prefix + "gate.e_score_correction_bias", {experts}));
    pre_expert_ = load("pre_expert_proj.weight", {latent, d}, format);
    pre_expert_norm_ = read_vector(source.get(prefix + "pre_expert_norm.weight", {latent}), 1.0F);
    gate_up_ = load("experts.gate_up_proj", {experts, 2 * wide, latent}, format);
    down_ = load("experts.down_proj", {experts, latent, wide}, format);
    post_expert_norm_ = read_vector(source.get(prefix + "experts.post_expert_norm.weight", {latent}), 1.0F);
    post_expert_ = load("post_expert_proj.weight", {d, latent}, format);
}

void MixtureOfExperts::forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows,
                               int64_t num_tokens, float* out) const {
    const Kernels& kernels = machine.kernels;
    const int64_t latent_size = config_.moe_hidden_size, wide_size = config_.moe_intermediate_size;
    const int64_t k = config_.num_experts_per_tok, num_slots = num_tokens * k;

    scratch.input.shape_for(pre_expert_, num_tokens);
    route(machine, scratch, rows, num_tokens);
    sort_by_expert(scratch);

    float* latent = scratch.latent.reserve(num_tokens, latent_size);
    multiply(machine, pre_expert_, scratch.input, num_tokens, latent, latent_size);
    scratch.latent_input.shape_for(gate_up_, num_tokens);
    for_rows(machine, num_tokens, latent_size * 4, [&](int64_t token) {
        float* row = latent + token * latent_size;
        kernels.rms_norm(row, pre_expert_norm_.data(), latent_size, config_.rms_norm_eps, row);
        scratch.latent_input.prepare(kernels, token, row, latent_size);
    });

    float* wide = scratch.wide.reserve(num_slots, 2 * wide_size);
    const auto latent_row = [&](int64_t slot) {
        return scratch.latent_input.row(scratch.tokens[static_cast<size_t>(slot)]);
    };
    multiply_experts(machine, scratch, gate_up_, latent_row, wide);
    scratch.wide_input.shape_for(down_, num_slots);
    activate(machine, wide, num_slots, wide_size, scratch.wide_input);
    float* expert_out = scratch.expert_out.reserve(num_slots, latent_size);
    multiply_experts(
        machine, scratch, down_, [&](int64_t slot) { return scratch.wide_input.row(slot); }, expert_out);

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
    multiply(machine, post_expert_, scratch.sum_input, num_tokens, out, config_.hidden_size);
}

// Scores and picks of all tokens; prepares the rows for pre_expert_proj on the way.
void MixtureOfExperts::route(const Machine& machine, FeedForwardScratch& scratch, const float* rows,
                             int64_t num_tokens) const {
    const Kernels& kernels = machine.kernels;
    const int64_t d = config_.hidden_size, experts = config_.num_local_experts, k = config_.num_experts_per_tok;
    float* scores = scratch.scores.reserve(num_tokens, experts);
    scratch.picks.resize(static_cast<size_t>(num_tokens * k));
    scratch.weights.resize(static_cast<size_t>(num_tokens * k));
    for_rows(machine, divide_up(num_tokens, kRouterRows), kRouterRows * d * divide_up(experts, kPanel),
             [&](int64_t block) {
                 const int64_t first = block * kRouterRows, count = std::min(kRouterRows, num_tokens - first);
                 const void* pointers[kRouterRows];
                 for (int64_t i = 0; i < count; ++i) pointers[i] = rows + (first + i) * d;
                 kernels.gemm[static_cast<int>(Format::float32)](
                     block_of(router_, 0, pointers, count, 0, router_.num_panels, scores + first * experts, experts));
                 for (int64_t token = first; token < first + count; ++token) {
                     float* row = scores + token * experts;
                     kernels.scale(row, config_.output_multiplier, experts);
                     kernels.sigmoid(row, experts);
                     pick(row, &scratch.picks[static_cast<size_t>(token * k)],
                          &scratch.weights[static_cast<size_t>(token * k)]);
                     scratch.input.prepare(kernels, token, rows + token * d, d);
                 }
             });
}

// The k experts of the largest score plus bias; of equal ones the lower number. The bias takes part in the choice only.
// Picks are in ascending order, so that a token's sum over its experts has one order.
void MixtureOfExperts::pick(const float* scores, int32_t* picks, float* weights) const {
    const int64_t k = config_.num_experts_per_tok;
    const auto preference = [&](int64_t e) { return scores[e] + correction_bias_[static_cast<size_t>(e)]; };
    int64_t picked = 0;  // picks[0, picked) are the best so far, the best first
    for (int64_t e = 0; e < config_.num_local_experts; ++e) {
        int64_t place = picked;
        while (place > 0 && preference(e) > preference(picks[place - 1])) --place;
        if (place == k) continue;
        picked = std::min(picked + 1, k);
        for (int64_t i = picked - 1; i > place; --i) picks[i] = picks[i - 1];
        picks[place] = static_cast<int32_t>(e);
    }
    std::sort(picks, picks + k);
    float sum = 0.0F;
    for (int64_t i = 0; i < k; ++i) {
        weights[i] = scores[picks[i]];
        sum += weights[i];
    }
    for (int64_t i = 0; i < k; ++i) weights[i] = weights[i] / (sum + 1e-15F) * config_.routed_scaling_factor;
}

void MixtureOfExperts::sort_by_expert(FeedForwardScratch& scratch) const {
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

DenseMlp::DenseMlp(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
                   const Machine& machine)
    : config_(config) {
    const int64_t d = config.hidden_size, wide = config.intermediate_size;
    gate_up_ =
        pack({source.get(prefix + "gate_proj.weight", {wide, d}), source.get(prefix + "up_proj.weight", {wide, d})},
             format, machine.kernels, machine.pool);
    down_ = pack({source.get(prefix + "down_proj.weight", {d, wide})}, format, machine.kernels, machine.pool);
}

void DenseMlp::forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens,
                       float* out) const {
    const int64_t d = config_.hidden_size, wide_size = config_.intermediate_size;
    scratch.input.shape_for(gate_up_, num_tokens);
    for_rows(machine, num_tokens, d * 2,
             [&](int64_t token) { scratch.input.prepare(machine.kernels, token, rows + token * d, d); });
    float* wide = scratch.wide.reserve(num_tokens, 2 * wide_size);
    multiply(machine, gate_up_, scratch.input, num_tokens, wide, 2 * wide_size);
    scratch.wide_input.shape_for(down_, num_tokens);
    activate(machine, wide, num_tokens, wide_size, scratch.wide_input);
    multiply(machine, down_, scratch.wide_input, num_tokens, out, d);
}

}  // namespace musespark
