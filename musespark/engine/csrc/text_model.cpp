#include "text_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <stdexcept>

namespace musespark {

namespace {

// 2^x instead of e^x in the softmax: one multiplication less per score.
constexpr float kLog2E = std::numbers::log2e_v<float>;

// The constants of a residual gate: branch factor beta = sigmoid(gate / temperature), residual factor
// alpha = sqrt(1 - beta^2), written so that it keeps its digits near beta = 1, and clamped as in training.
void residual_gate(const std::vector<float>& gate, float temperature, std::vector<float>& alpha,
                   std::vector<float>& beta) {
    alpha.resize(gate.size());
    beta.resize(gate.size());
    for (size_t i = 0; i < gate.size(); ++i) {
        const float w = gate[i] / temperature;
        beta[i] = 1.0F / (1.0F + std::exp(-w));
        alpha[i] = std::sqrt(std::max((1.0F + beta[i]) / (1.0F + std::exp(w)), 1e-3F));
    }
}

}  // namespace

HeadPage head_page(const TextConfig& config, Format format) {
    return {format == Format::float32 ? Format::float32 : Format::bfloat16, config.head_dim};
}

TextModel::TextModel(TensorSource& source, const TextConfig& config, Format format, int64_t num_full_pages,
                     int64_t num_sliding_pages, const Machine& machine)
    : config_(config), checker_(config_, num_full_pages, num_sliding_pages) {
    const int64_t d = config_.hidden_size;
    const std::string prefix = "model.language_model.";
    // The embedding is copied as it is stored: a row is all that a token needs of it.
    embedding_ = source.get(prefix + "embed_tokens.weight", {config_.vocab_size, d});
    if (embedding_.type == Tensor::Type::int8) throw std::invalid_argument(embedding_.name + " must be in floats");
    const int64_t element = embedding_.type == Tensor::Type::float32 ? 4 : 2;
    embedding_memory_ = Bytes(checked_product({config_.vocab_size, d, element}));
    std::memcpy(embedding_memory_.data(), embedding_.data, static_cast<size_t>(embedding_memory_.size()));
    embedding_.data = embedding_memory_.data();
    embedding_.owner.reset();

    for (size_t i = 0; i < config_.layers.size(); ++i) {
        layers_.push_back(load_layer(source, static_cast<int64_t>(i), format, machine));
    }
    final_norm_ =
        read_vector(source.get(prefix + "norm.weight", {d}));  // used as it is, unlike the norms of the layers
    lm_head_ = pack({source.get("lm_head.weight", {config_.vocab_size, d})}, format, machine.kernels, machine.pool);

    const HeadPage head = head_page(config_, format);
    pages_[0] = PagePool(head, config_.num_layers(false), config_.num_key_value_heads, num_full_pages);
    pages_[1] = PagePool(head, config_.num_layers(true), config_.num_key_value_heads, num_sliding_pages);
    for (int thread = 0; thread < machine.pool.num_threads(); ++thread) work_.attention.emplace_back(head);
}

TextModel::Layer TextModel::load_layer(TensorSource& source, int64_t index, Format format,
                                       const Machine& machine) const {
    const int64_t d = config_.hidden_size, query = config_.query_width(), key = config_.key_width();
    const std::string prefix = "model.language_model.layers." + std::to_string(index) + ".";
    const auto vector = [&](const char* name, float offset) {
        return read_vector(source.get(prefix + name, {d}), offset);
    };
    const auto matrix = [&](const std::string& name, int64_t out, int64_t in) {
        return source.get(prefix + "self_attn." + name + "_proj.weight", {out, in});
    };
    Layer layer;
    layer.kind = config_.layers[static_cast<size_t>(index)];
    layer.index_in_group = 0;
    for (int64_t i = 0; i < index; ++i) {
        layer.index_in_group += config_.layers[static_cast<size_t>(i)].sliding == layer.kind.sliding;
    }
    layer.input_norm = vector("input_layernorm.weight", 1.0F);
    layer.projections =
        pack({matrix("q", query, d), matrix("k", key, d), matrix("v", key, d), matrix("gate", query, d)}, format,
             machine.kernels, machine.pool);
    layer.output = pack({matrix("o", d, query)}, format, machine.kernels, machine.pool);
    residual_gate(vector("post_attention_residual_gate.gate", 0.0F), config_.residual_gate_temperature,
                  layer.attention_alpha, layer.attention_beta);
    layer.feedforward_norm = vector("pre_feedforward_layernorm.weight", 1.0F);
    if (layer.kind.sparse) {
        layer.experts = std::make_unique<MixtureOfExperts>(source, config_, prefix + "mlp.", format, machine);
    } else {
        layer.dense = std::make_unique<DenseMlp>(source, config_, prefix + "mlp.", format, machine);
    }
    layer.post_feedforward_norm = vector("post_feedforward_layernorm.weight", 1.0F);
    residual_gate(vector("post_feedforward_residual_gate.gate", 0.0F), config_.residual_gate_temperature,
                  layer.feedforward_alpha, layer.feedforward_beta);
    return layer;
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
    compute_rotary(machine, batch);
    for (const Layer& layer : layers_) {
        attention_half(machine, batch, plan, layer);
        for_rows(machine, n, d * 6, [&](int64_t row) {
            float* r = residual + row * d;
            float* b = branch + row * d;
            kernels.rms_norm(b, nullptr, d, config_.post_norm_eps, b);  // this norm has no weight, hence no tensor
            kernels.residual_gate(r, layer.attention_alpha.data(), layer.attention_beta.data(), b, d);
            kernels.rms_norm(r, layer.feedforward_norm.data(), d, config_.rms_norm_eps, normed + row * d);
        });
        if (layer.experts) {
            layer.experts->forward(machine, work_.feedforward, normed, n, branch);
        } else {
            layer.dense->forward(machine, work_.feedforward, normed, n, branch);
        }
        for_rows(machine, n, d * 4, [&](int64_t row) {
            float* b = branch + row * d;
            kernels.input_scaled_norm(b, layer.post_feedforward_norm.data(), d, config_.post_norm_eps, b);
            kernels.residual_gate(residual + row * d, layer.feedforward_alpha.data(), layer.feedforward_beta.data(), b,
                                  d);
        });
    }
    head(machine, batch, logits);
}

void TextModel::embed(const Machine& machine, const Batch& batch) {
    const int64_t d = config_.hidden_size;
    float* residual = work_.residual.data();
    for_rows(machine, batch.num_tokens, d * 2, [&](int64_t row) {
        float* r = residual + row * d;
        embedding_.read_row(batch.token_ids[row], r);
        machine.kernels.rms_norm(r, nullptr, d, config_.rms_norm_eps, r);
    });
    // Image features come normed.
    for (int64_t i = 0; i < batch.num_embeds; ++i) {
        std::copy_n(batch.embeds + i * d, d, residual + batch.embed_rows[i] * d);
    }
}

// Cosines and sines of every row's position, shared by all layers. The angle is rounded to float32 as in the reference.
void TextModel::compute_rotary(const Machine& machine, const Batch& batch) {
    const int64_t half = config_.head_dim / 2;
    float* rotary = work_.rotary.reserve(batch.num_tokens, 2 * half);
    for_rows(machine, batch.num_tokens, half * 64, [&](int64_t row) {
        float* r = rotary + row * 2 * half;
        for (int64_t i = 0; i < half; ++i) {
            const float angle =
                static_cast<float>(batch.positions[row]) * config_.rotary_frequencies[static_cast<size_t>(i)];
            r[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
            r[half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
        }
    });
}

// residual -> branch = o_proj(attention(norm(residual)))
void TextModel::attention_half(const Machine& machine, const Batch& batch, const Plan& plan, const Layer& layer) {
    const int64_t n = batch.num_tokens, d = config_.hidden_size, width = projected_width();
    work_.input.shape_for(layer.projections, n);
    for_rows(machine, n, d * 3, [&](int64_t row) {
        float* normed = work_.normed.data() + row * d;
        machine.kernels.rms_norm(work_.residual.data() + row * d, layer.input_norm.data(), d, config_.rms_norm_eps,
                                 normed);
        work_.input.prepare(machine.kernels, row, normed, d);
    });
    multiply(machine, layer.projections, work_.input, n, work_.projected.reserve(n, width), width);
    write_pages(machine, batch, plan, layer);
    attend(machine, batch, plan, layer);
    work_.attended.shape_for(layer.output, n);
    for_rows(machine, n, config_.query_width(), [&](int64_t row) {
        work_.attended.prepare(machine.kernels, row, work_.projected.data() + row * width, config_.query_width());
    });
    multiply(machine, layer.output, work_.attended, n, work_.branch.data(), d);
}

// Norm and turn q and k; store the queries as operands, k and v in their pages.
void TextModel::write_pages(const Machine& machine, const Batch& batch, const Plan& plan, const Layer& layer) {
    const Kernels& kernels = machine.kernels;
    const PagePool& pool = pages_[layer.kind.sliding];
    const HeadPage& head = pool.head();
    const int64_t d = config_.head_dim, width = projected_width();
    const int64_t num_heads = config_.num_attention_heads, num_kv_heads = config_.num_key_value_heads;
    const int64_t query_bytes = d * head.element_bytes();
    std::byte* queries = work_.queries.reserve(batch.num_tokens, num_heads * query_bytes);
    const float query_scale = config_.qk_scale_factor / std::sqrt(static_cast<float>(d)) * kLog2E;
    const int32_t* table = layer.kind.sliding ? batch.sliding_block_table : batch.full_block_table;
    const int64_t columns = layer.kind.sliding ? batch.sliding_columns : batch.full_columns;

    // One task a page, so that the page is cleared before its rows are written.
    machine.pool.run(static_cast<int64_t>(plan.page_runs.size()), [&](int64_t index, int) {
        const PageRun& run = plan.page_runs[static_cast<size_t>(index)];
        std::byte* page = pool.page(table[run.sequence * columns + run.page]);
        if (run.first_slot == 0) {
            // What an earlier owner left must not meet a weight of zero: 0 * NaN would be NaN.
            std::memset(page + pool.head_offset(layer.index_in_group, 0), 0,
                        static_cast<size_t>(num_kv_heads * head.bytes()));
        }
        for (int64_t row = run.first_row; row < run.first_row + run.num_rows; ++row) {
            float* q = work_.projected.data() + row * width;
            float* k = q + config_.query_width();
            const float* v = k + config_.key_width();
            const float* cosine = work_.rotary.data() + row * d;
            for (int64_t h = 0; h < num_heads + num_kv_heads; ++h) {  // q and k lie one behind the other
                kernels.rms_norm(q + h * d, nullptr, d, config_.rms_norm_eps, q + h * d);
                if (layer.kind.rope) kernels.rotate(q + h * d, cosine, cosine + d / 2, d / 2);
            }
            kernels.scale(q, query_scale, config_.query_width());
            std::byte* query = queries + row * num_heads * query_bytes;
            if (head.format == Format::float32) {
                std::memcpy(query, q, static_cast<size_t>(num_heads * query_bytes));
            } else {
                kernels.to_bfloat16(q, config_.query_width(), reinterpret_cast<uint16_t*>(query),
                                    config_.query_width());
            }
            for (int64_t h = 0; h < num_kv_heads; ++h) {
                head.put(kernels, page + pool.head_offset(layer.index_in_group, h),
                         run.first_slot + row - run.first_row, k + h * d, v + h * d);
            }
        }
    });
}

// Attention, its norm and its gate; the result replaces q in `projected`.
void TextModel::attend(const Machine& machine, const Batch& batch, const Plan& plan, const Layer& layer) {
    const Kernels& kernels = machine.kernels;
    const PagePool& pool = pages_[layer.kind.sliding];
    const int64_t d = config_.head_dim, width = projected_width();
    const int64_t num_heads = config_.num_attention_heads, num_kv_heads = config_.num_key_value_heads;
    const int64_t group = num_heads / num_kv_heads;
    const int64_t query_bytes = d * pool.head().element_bytes();
    const int32_t* table = layer.kind.sliding ? batch.sliding_block_table : batch.full_block_table;
    const int64_t columns = layer.kind.sliding ? batch.sliding_columns : batch.full_columns;
    const auto num_blocks = static_cast<int64_t>(plan.query_blocks.size());

    machine.pool.run(num_blocks * num_kv_heads, [&](int64_t task, int thread) {
        // The last blocks of a sequence see the most keys: they go first, so that the small ones fill the end.
        const QueryBlock& block = plan.query_blocks[static_cast<size_t>(num_blocks - 1 - task / num_kv_heads)];
        const int64_t kv_head = task % num_kv_heads;
        const int64_t first_row = batch.query_start[block.sequence];
        const auto row_of = [&](int64_t i) { return first_row + (block.first + i) / group; };
        const auto head_of = [&](int64_t i) { return kv_head * group + (block.first + i) % group; };
        Query queries[kQueryRows];
        for (int64_t i = 0; i < block.count; ++i) {
            const int64_t position = batch.positions[row_of(i)];
            queries[i] = {work_.queries.data() + (row_of(i) * num_heads + head_of(i)) * query_bytes,
                          checker_.first_key(layer.kind.sliding, position), position + 1};
        }
        const PageTable pages = {pool.page(0) + pool.head_offset(layer.index_in_group, kv_head), pool.page_bytes(),
                                 table + block.sequence * columns};
        AttentionScratch& scratch = work_.attention[static_cast<size_t>(thread)];
        scratch.attend(kernels, pages, queries, block.count);
        for (int64_t i = 0; i < block.count; ++i) {
            float* row = work_.projected.data() + row_of(i) * width;
            const float* gate = row + config_.query_width() + 2 * config_.key_width();
            kernels.rms_norm(scratch.output(i), nullptr, d, config_.rms_norm_eps, row + head_of(i) * d);
            kernels.multiply_by_sigmoid(row + head_of(i) * d, gate + head_of(i) * d, d);
        }
    });
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
