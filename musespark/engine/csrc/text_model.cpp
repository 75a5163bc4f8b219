#include "text_model.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace musespark {

TextModel::TextModel(TensorSource& source, const TextConfig& config, Format format, const HeadPage& head,
                     int64_t num_full_pages, int64_t num_sliding_pages, const Machine& machine)
    : config_(config), checker_(config_, num_full_pages, num_sliding_pages) {
    const int64_t d = config_.hidden_size;
    const std::string prefix = config_.family->prefix;
    // The embedding is copied as it is stored: a row is all that a token needs of it.
    embedding_ = source.get(prefix + "embed_tokens.weight", {config_.vocab_size, d});
    embedding_memory_ = keep(embedding_);

    for (size_t i = 0; i < config_.layers.size(); ++i) {
        layers_.push_back(load_layer(source, static_cast<int64_t>(i), format, machine));
    }
    final_norm_ =
        read_vector(source.get(prefix + "norm.weight", {d}));  // used as it is, even where those of the layers are not
    lm_head_ = pack({source.get(config_.family->head, {config_.vocab_size, d})}, format, machine.kernels, machine.pool);

    pages_[0] = PagePool(head, config_.num_layers(false), config_.num_key_value_heads, num_full_pages);
    pages_[1] = PagePool(head, config_.num_layers(true), config_.num_key_value_heads, num_sliding_pages);
    work_.attention.attention.emplace(head, machine.pool.num_threads());
}

TextModel::Layer TextModel::load_layer(TensorSource& source, int64_t index, Format format,
                                       const Machine& machine) const {
    const TextFamily& family = *config_.family;
    const std::string prefix = std::string(family.prefix) + "layers." + std::to_string(index) + ".";
    return {
        SelfAttention(source, config_, index, prefix, format, machine),
        Branch(source, config_, family.attention_norm, prefix + "post_attention_"),
        read_vector(source.get(prefix + family.feed_forward_norm, {config_.hidden_size}), family.norm_offset),
        load_feed_forward(source, config_, config_.layers[static_cast<size_t>(index)].sparse, prefix, format, machine),
        Branch(source, config_, family.feed_forward_branch_norm, prefix + "post_feedforward_"),
    };
}

void TextModel::forward(const Machine& machine, const Batch& batch, float* logits) {
    const Plan& plan = checker_.check(batch);
    const int64_t n = batch.num_tokens, d = config_.hidden_size;
    if (n == 0) return;
    const Kernels& kernels = machine.kernels;
    float* residual = work_.residual.reserve(n, d);
    float* normed = work_.normed.reserve(n, d);
    float* branch = work_.branch.reserve(n, d);
    embed(machine, batch);
    work_.attention.see_positions(machine, config_, batch);
    for (const Layer& layer : layers_) {
        const PagePool& pages = pages_[layer.attention.local()];
        layer.attention.forward(machine, work_.attention, pages, batch, plan, residual, branch);
        for_rows(machine, n, d * 6, [&](int64_t row) {
            float* r = residual + row * d;
            layer.attention_branch.join(kernels, r, branch + row * d);
            kernels.rms_norm(r, layer.feed_forward_norm.data(), d, config_.rms_norm_eps, normed + row * d);
        });
        layer.feed_forward->forward(machine, work_.feed_forward, normed, n, branch);
        for_rows(machine, n, d * 4,
                 [&](int64_t row) { layer.feed_forward_branch.join(kernels, residual + row * d, branch + row * d); });
    }
    head(machine, batch, logits);
}

void TextModel::embed(const Machine& machine, const Batch& batch) {
    const int64_t d = config_.hidden_size;
    float* residual = work_.residual.data();
    for_rows(machine, batch.num_tokens, d * 2, [&](int64_t row) {
        float* r = residual + row * d;
        embedding_.read_row(batch.token_ids[row], r);
        if (config_.family->norms_embedding) machine.kernels.rms_norm(r, nullptr, d, config_.rms_norm_eps, r);
    });
    // Image features come as they are to be used.
    for (int64_t i = 0; i < batch.num_embeds; ++i) {
        std::copy_n(batch.embeds + i * d, d, residual + batch.embed_rows[i] * d);
    }
}

void TextModel::head(const Machine& machine, const Batch& batch, float* logits) {
    const int64_t d = config_.hidden_size;
    work_.head.shape_for(lm_head_, batch.num_logits);
    for_rows(machine, batch.num_logits, d * 3, [&](int64_t i) {
        float* row = work_.normed.data() + batch.logit_rows[i] * d;
        machine.kernels.rms_norm(work_.residual.data() + batch.logit_rows[i] * d, final_norm_.data(), d,
                                 config_.rms_norm_eps, row);
        work_.head.prepare(machine.kernels, i, row, d);
    });
    Epilogue epilogue;
    epilogue.soft_cap = config_.final_logit_softcapping;
    epilogue.multiplier = config_.output_multiplier;
    multiply(machine, lm_head_, work_.head, batch.num_logits, logits, config_.vocab_size, epilogue);
}

}  // namespace musespark
