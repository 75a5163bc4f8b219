// The attention half of a decoder layer: norm, projections, rotation, keys and values to their pages, attention over
// pages, output projection. Letters: N tokens, D hidden, H query heads, K kv heads, d head width.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attention.h"
#include "batch.h"
#include "config.h"
#include "kv_pages.h"
#include "operand.h"
#include "weights.h"

namespace musespark {

// Scratch rows shared by all layers, and what a step knows of its rows' positions.
struct SelfAttentionScratch {
    Scratch<float> rotary;       // (N, d): cosines, sines
    Scratch<float> temperature;  // (N): the factor of queries on layers without rotation
    Scratch<float> normed;       // (N, D)
    Scratch<float> projected;    // (N, (2 or 1) * H * d + 2 * K * d): q, k, v, gate if there is one
    Scratch<std::byte> queries;  // (N, H, d) in the format of the keys
    Operand input, attended;
    std::optional<Attention> attention;

    // Once a step, before the layers.
    void see_positions(const Machine& machine, const TextConfig& config, const Batch& batch);
};

class SelfAttention {
public:
    // `prefix` is that of the layer.
    SelfAttention(TensorSource& source, const TextConfig& config, int64_t layer, const std::string& prefix,
                  Format format, const Machine& machine);

    // residual (N, D) -> out (N, D); K and V of the batch are added to `pages`, those of the layer's group.
    void forward(const Machine& machine, SelfAttentionScratch& scratch, const PagePool& pages, const Batch& batch,
                 const Plan& plan, const float* residual, float* out) const;

    bool local() const { return kind_.local; }

private:
    void write_pages(const Machine& machine, SelfAttentionScratch& scratch, const PagePool& pages, const Batch& batch,
                     const Plan& plan) const;
    void attend(const Machine& machine, SelfAttentionScratch& scratch, const PagePool& pages, const Batch& batch,
                const Plan& plan) const;
    void prepare_heads(const Kernels& kernels, float* heads, int64_t count, const float* rotary) const;

    const TextConfig& config_;
    TextLayer kind_;
    int64_t index_in_group_;  // among the layers of its page group
    bool norms_qk_, tunes_temperature_;
    std::vector<float> input_norm_;
    PackedMatrix projections_;  // q, k, v and gate under each other: they read the same rows
    PackedMatrix output_;
};

}  // namespace musespark
