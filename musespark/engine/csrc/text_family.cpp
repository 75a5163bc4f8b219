#include "text_family.h"

#include <stdexcept>

namespace musespark {

namespace {

constexpr TextFamily kFamilies[] = {
    {
        .model_type = "muse_spark",
        .prefix = "model.language_model.",
        .head = "lm_head.weight",
        .feed_forward_norm = "pre_feedforward_layernorm.weight",
        .feed_forward = "mlp.",
        .norm_offset = 1.0F,
        .norms_embedding = true,
        .qk_norm = QkNorm::before_rotation,
        .rotary_pairs = Pairs::halves,
        .norms_attention = true,
        .gates_attention = true,
        .attention_norm = BranchNorm::weightless,
        .feed_forward_branch_norm = BranchNorm::input_scaled,
        .gates_residual = true,
        .experts = Experts::latent,
    },
    {
        .model_type = "muse_glimmer",
        .prefix = "model.language_model.",
        .head = "lm_head.weight",
        .feed_forward_norm = "pre_feedforward_layernorm.weight",
        .feed_forward = "mlp.",
        .norm_offset = 1.0F,
        .norms_embedding = true,
        .qk_norm = QkNorm::before_rotation,
        .rotary_pairs = Pairs::halves,
        .norms_attention = false,
        .gates_attention = true,
        .attention_norm = BranchNorm::weighted,
        .feed_forward_branch_norm = BranchNorm::weighted,
        .gates_residual = false,
        .experts = Experts::none,
    },
    {
        .model_type = "llama4",
        .prefix = "language_model.model.",
        .head = "language_model.lm_head.weight",
        .feed_forward_norm = "post_attention_layernorm.weight",
        .feed_forward = "feed_forward.",
        .norm_offset = 0.0F,
        .norms_embedding = false,
        .qk_norm = QkNorm::after_rotation,
        .rotary_pairs = Pairs::neighbours,
        .norms_attention = false,
        .gates_attention = false,
        .attention_norm = BranchNorm::none,
        .feed_forward_branch_norm = BranchNorm::none,
        .gates_residual = false,
        .experts = Experts::scored,
    },
};

}  // namespace

const TextFamily& text_family(const std::string& model_type) {
    std::string known;
    for (const TextFamily& family : kFamilies) {
        if (model_type == family.model_type) return family;
        known += std::string(known.empty() ? "" : ", ") + family.model_type;
    }
    throw std::invalid_argument("model_type is '" + model_type + "'; it must be one of " + known);
}

}  // namespace musespark
