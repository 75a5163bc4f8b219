// The network's shape, as ModelConfig (musespark/model/config.py) describes it; filled in by bindings.cpp.
#pragma once

#include <cstdint>
#include <vector>

namespace musespark {

struct TextLayer {
    bool sliding = false;
    bool sparse = false;
    bool rope = false;
};

struct TextConfig {
    int64_t vocab_size, hidden_size, intermediate_size;
    int64_t num_attention_heads, num_key_value_heads, head_dim;
    int64_t max_position_embeddings, sliding_window;
    int64_t moe_hidden_size, moe_intermediate_size, num_local_experts, num_experts_per_tok;
    float rms_norm_eps, post_norm_eps, final_logit_softcapping, qk_scale_factor, output_multiplier;
    float routed_scaling_factor, residual_gate_temperature;
    std::vector<float> rotary_frequencies;  // (head_dim / 2)
    std::vector<TextLayer> layers;

    int64_t query_width() const { return num_attention_heads * head_dim; }
    int64_t key_width() const { return num_key_value_heads * head_dim; }
    int64_t num_layers(bool sliding) const {
        int64_t count = 0;
        for (const TextLayer& layer : layers) count += layer.sliding == sliding;
        return count;
    }
};

}  // namespace musespark
