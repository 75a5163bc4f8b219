#include "experts.h"

#include <algorithm>

namespace musespark {

namespace {

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

PackedMatrix load(TensorSource& source, const std::string& name, const std::vector<int64_t>& shape, Format format,
                  const Machine& machine) {
    return pack({source.get(name, shape)}, format, machine.kernels, machine.pool);
}

}  // namespace

ExpertStack::ExpertStack(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
                         const Machine& machine) {
    const int64_t experts = config.num_local_experts, read = config.moe_hidden_size;
    const int64_t wide = config.moe_intermediate_size;
    gate_up_ = load(source, prefix + "gate_up_proj", {experts, 2 * wide, read}, format, machine);
    down_ = load(source, prefix + "down_proj", {experts, read, wide}, format, machine);
}

template <class RowOfSlot>
float* ExpertStack::forward(const Machine& machine, FeedForwardScratch& scratch, const RowOfSlot& row_of_slot) const {
    const auto num_slots = static_cast<int64_t>(scratch.tokens.size());
    float* wide = scratch.wide.reserve(num_slots, gate_up_.out);
    const auto input = [&](int64_t slot) { return scratch.expert_input.row(row_of_slot(slot)); };
    multiply_experts(machine, scratch, gate_up_, input, wide);
    scratch.wide_input.shape_for(down_, num_slots);
    activate(machine, wide, num_slots, down_.in, scratch.wide_input);
    float* out = scratch.expert_out.reserve(num_slots, down_.out);
    multiply_experts(machine, scratch, down_, [&](int64_t slot) { return scratch.wide_input.row(slot); }, out);
    return out;
}

LatentExperts::LatentExperts(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
                             const Machine& machine)
    : config_(config),
      router_(source, config, prefix, machine),
      experts_(source, config, prefix + "experts.", format, machine) {
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
    experts_.shape_input(scratch, num_tokens);
    for_rows(machine, num_tokens, latent_size * 4, [&](int64_t token) {
        float* row = latent + token * latent_size;
        kernels.rms_norm(row, pre_expert_norm_.data(), latent_size, config_.rms_norm_eps, row);
        scratch.expert_input.prepare(kernels, token, row, latent_size);
    });
    float* expert_out =
        experts_.forward(machine, scratch, [&](int64_t slot) { return scratch.tokens[static_cast<size_t>(slot)]; });

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
      experts_(source, config, prefix + "experts.", format, machine),
      shared_(source, config, config.moe_intermediate_size, prefix + "shared_expert.", format, machine) {}

void ScoredExperts::forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens,
                            float* out) const {
    const Kernels& kernels = machine.kernels;
    const int64_t d = config_.hidden_size, k = config_.num_experts_per_tok, num_slots = num_tokens * k;
    shared_.forward(machine, scratch, rows, num_tokens, out);
    router_.route(machine, scratch, rows, num_tokens);
    float* scored = scratch.expert_rows.reserve(num_slots, d);
    experts_.shape_input(scratch, num_slots);
    for_rows(machine, num_slots, d * 3, [&](int64_t i) {
        const int64_t slot = scratch.slots[static_cast<size_t>(i)];
        float* row = scored + slot * d;
        std::copy_n(rows + i / k * d, d, row);
        kernels.scale(row, scratch.weights[static_cast<size_t>(i)], d);
        scratch.expert_input.prepare(kernels, slot, row, d);
    });
    const float* expert_out = experts_.forward(machine, scratch, [](int64_t slot) { return slot; });
    for_rows(machine, num_tokens, d * 2 * k, [&](int64_t token) {
        for (int64_t i = token * k; i < (token + 1) * k; ++i) {
            kernels.add(out + token * d, expert_out + scratch.slots[static_cast<size_t>(i)] * d, d);
        }
    });
}

}  // namespace musespark
