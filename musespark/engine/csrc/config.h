// The network's shape, as ModelConfig (musespark/model/config.py) describes it; filled in by bindings.cpp. What a
// family of text stacks does differently from the others is in text_family.h.
#pragma once

#include <cstdint>
#include <vector>

#include "text_family.h"

namespace musespark {

struct TextLayer {
    bool local = false;  // sees a window or its own chunk, so that its pages are in the sliding group
    bool sparse = false;
    bool rope = false;
};

struct TextConfig {
    const TextFamily* family;
    int64_t vocab_size, hidden_size, intermediate_size;
    int64_t num_attention_heads, num_key_value_heads, head_dim;
    int64_t max_position_embeddings;
    int64_t local_span;  // of local layers: the window, or the chunk
    int64_t moe_hidden_size, moe_intermediate_size, num_local_experts, num_experts_per_tok;
    int64_t floor_scale;  // positions that share a temperature
    float rms_norm_eps, post_norm_eps, final_logit_softcapping, qk_scale_factor, output_multiplier;
    float routed_scaling_factor, residual_gate_temperature, attn_scale;
    bool chunked, use_qk_norm, attn_temperature_tuning;
    std::vector<float> rotary_frequencies;  // (head_dim / 2)
    std::vector<TextLayer> layers;

    int64_t query_width() const { return num_attention_heads * head_dim; }
    int64_t key_width() const { return num_key_value_heads * head_dim; }
    int64_t num_layers(bool local) const {
        int64_t count = 0;
        for (const TextLayer& layer : layers) count += layer.local == local;
        return count;
    }
    // The first key that a query at `position` sees. It never decreases from one position to the next.
    int64_t first_key(bool local, int64_t position) const {
        if (!local) return 0;
        if (chunked) return position - position % local_span;
        return position >= local_span ? position - local_span + 1 : 0;
    }
};

}  // namespace musespark
