#include "self_attention.h"

#include <cmath>
#include <cstring>
#include <numbers>

namespace musespark {

namespace {

// 2^x instead of e^x in the softmax: one multiplication less per score.
constexpr float kLog2E = std::numbers::log2e_v<float>;

// The block table of a layer's page group.
struct Table {
    const int32_t* ids;
    int64_t columns;

    Table(const Batch& batch, bool local)
        : ids(local ? batch.sliding_block_table : batch.full_block_table),
          columns(local ? batch.sliding_columns : batch.full_columns) {}
    const int32_t* of(int64_t sequence) const { return ids + sequence * columns; }
};

}  // namespace

// The angle is rounded to float32 as in the reference. Temperature: 1 + attn_scale * ln(1 + how many whole floor_scales
// lie before the next position), counted in integers.
void SelfAttentionScratch::see_positions(const Machine& machine, const TextConfig& config, const Batch& batch) {
    const int64_t half = config.head_dim / 2;
    float* turns = rotary.reserve(batch.num_tokens, 2 * half);
    float* temperatures = temperature.reserve(batch.num_tokens, 1);
    for_rows(machine, batch.num_tokens, half * 64, [&](int64_t row) {
        const int64_t position = batch.positions[row];
        float* r = turns + row * 2 * half;
        for (int64_t i = 0; i < half; ++i) {
            const float angle = static_cast<float>(position) * config.rotary_frequencies[static_cast<size_t>(i)];
            r[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
            r[half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
        }
        const auto steps = static_cast<double>((position + 1) / config.floor_scale);
        temperatures[row] = 1.0F + config.attn_scale * static_cast<float>(std::log1p(steps));
    });
}

SelfAttention::SelfAttention(TensorSource& source, const TextConfig& config, int64_t layer, const std::string& prefix,
                             Format format, const Machine& machine)
    : config_(config), kind_(config.layers[static_cast<size_t>(layer)]), index_in_group_(0) {
    const int64_t d = config.hidden_size, query = config.query_width(), key = config.key_width();
    const TextFamily& family = *config.family;
    const auto matrix = [&](const char* name, int64_t out, int64_t in) {
        return source.get(prefix + "self_attn." + name + "_proj.weight", {out, in});
    };
    for (int64_t i = 0; i < layer; ++i) index_in_group_ += config.layers[static_cast<size_t>(i)].local == kind_.local;
    norms_qk_ = config.use_qk_norm && (family.qk_norm == QkNorm::before_rotation || kind_.rope);
    tunes_temperature_ = config.attn_temperature_tuning && !kind_.rope;
    input_norm_ = read_vector(source.get(prefix + "input_layernorm.weight", {d}), family.norm_offset);
    std::vector<Tensor> inputs = {matrix("q", query, d), matrix("k", key, d), matrix("v", key, d)};
    if (family.gates_attention) inputs.push_back(matrix("gate", query, d));
    projections_ = pack(inputs, format, machine.kernels, machine.pool);
    output_ = pack({matrix("o", d, query)}, format, machine.kernels, machine.pool);
}

void SelfAttention::forward(const Machine& machine, SelfAttentionScratch& scratch, const PagePool& pages,
                            const Batch& batch, const Plan& plan, const float* residual, float* out) const {
    const int64_t n = batch.num_tokens, d = config_.hidden_size, width = projections_.out;
    scratch.input.shape_for(projections_, n);
    float* normed = scratch.normed.reserve(n, d);
    for_rows(machine, n, d * 3, [&](int64_t row) {
        machine.kernels.rms_norm(residual + row * d, input_norm_.data(), d, config_.rms_norm_eps, normed + row * d);
        scratch.input.prepare(machine.kernels, row, normed + row * d, d);
    });
    float* projected = scratch.projected.reserve(n, width);
    multiply(machine, projections_, scratch.input, n, projected, width);
    write_pages(machine, scratch, pages, batch, plan);
    attend(machine, scratch, pages, batch, plan);
    scratch.attended.shape_for(output_, n);
    for_rows(machine, n, config_.query_width(), [&](int64_t row) {
        scratch.attended.prepare(machine.kernels, row, projected + row * width, config_.query_width());
    });
    multiply(machine, output_, scratch.attended, n, out, d);
}

// Norm and turn q and k; store the queries as operands, k and v in their pages.
void SelfAttention::write_pages(const Machine& machine, SelfAttentionScratch& scratch, const PagePool& pages,
                                const Batch& batch, const Plan& plan) const {
    const Kernels& kernels = machine.kernels;
    const HeadPage& head = pages.head();
    const int64_t d = config_.head_dim, width = projections_.out;
    const int64_t num_heads = config_.num_attention_heads, num_kv_heads = config_.num_key_value_heads;
    const int64_t query_bytes = head.query_bytes();
    std::byte* queries = scratch.queries.reserve(batch.num_tokens, num_heads * query_bytes);
    const float query_scale = config_.qk_scale_factor / std::sqrt(static_cast<float>(d)) * kLog2E;
    const Table table(batch, kind_.local);

    // One task a page, so that the page is cleared before its rows are written.
    machine.pool.run(static_cast<int64_t>(plan.page_runs.size()), [&](int64_t index, int) {
        const PageRun& run = plan.page_runs[static_cast<size_t>(index)];
        std::byte* page = pages.page(table.of(run.sequence)[run.page]);
        if (run.first_slot == 0) {
            // What an earlier owner left must not meet a weight of zero: 0 * NaN would be NaN.
            std::memset(page + pages.head_offset(index_in_group_, 0), 0,
                        static_cast<size_t>(num_kv_heads * head.bytes()));
        }
        for (int64_t row = run.first_row; row < run.first_row + run.num_rows; ++row) {
            float* q = scratch.projected.data() + row * width;
            float* k = q + config_.query_width();
            const float* v = k + config_.key_width();
            // q and k lie one behind the other
            prepare_heads(kernels, q, num_heads + num_kv_heads, scratch.rotary.data() + row * d);
            const float temperature = tunes_temperature_ ? scratch.temperature.data()[row] : 1.0F;
            kernels.scale(q, query_scale * temperature, config_.query_width());
            for (int64_t h = 0; h < num_heads; ++h) {
                head.prepare(kernels, q + h * d, queries + (row * num_heads + h) * query_bytes);
            }
            for (int64_t h = 0; h < num_kv_heads; ++h) {
                head.put(kernels, page + pages.head_offset(index_in_group_, h), run.first_slot + row - run.first_row,
                         k + h * d, v + h * d);
            }
        }
    });
}

// `count` heads of one row, one behind the other.
void SelfAttention::prepare_heads(const Kernels& kernels, float* heads, int64_t count, const float* rotary) const {
    const int64_t d = config_.head_dim;
    const TextFamily& family = *config_.family;
    const auto rotate = family.rotary_pairs == Pairs::halves ? kernels.rotate : kernels.rotate_neighbours;
    const auto norm = [&](float* head) { kernels.rms_norm(head, nullptr, d, config_.rms_norm_eps, head); };
    for (float* head = heads; head < heads + count * d; head += d) {
        if (norms_qk_ && family.qk_norm == QkNorm::before_rotation) norm(head);
        if (kind_.rope) rotate(head, rotary, rotary + d / 2, d / 2);
        if (norms_qk_ && family.qk_norm == QkNorm::after_rotation) norm(head);
    }
}

// Attention, its norm and its gate; the result replaces q in `projected`.
void SelfAttention::attend(const Machine& machine, SelfAttentionScratch& scratch, const PagePool& pages,
                           const Batch& batch, const Plan& plan) const {
    const Kernels& kernels = machine.kernels;
    const int64_t d = config_.head_dim, width = projections_.out;
    const int64_t num_heads = config_.num_attention_heads, num_kv_heads = config_.num_key_value_heads;
    const int64_t group = num_heads / num_kv_heads;
    const int64_t query_bytes = pages.head().query_bytes();
    const Table table(batch, kind_.local);
    const auto num_blocks = static_cast<int64_t>(plan.query_blocks.size());
    // The last blocks of a sequence see the most keys: they go first, so that the small ones fill the end.
    const auto block_of = [&](int64_t index) -> const QueryBlock& {
        return plan.query_blocks[static_cast<size_t>(num_blocks - 1 - index / num_kv_heads)];
    };
    const auto row_of = [&](const QueryBlock& block, int64_t i) {
        return batch.query_start[block.sequence] + (block.first + i) / group;
    };
    const auto head_of = [&](const QueryBlock& block, int64_t index, int64_t i) {
        return index % num_kv_heads * group + (block.first + i) % group;
    };
    const auto fill = [&](int64_t index, QueryGroup& queries) {
        const QueryBlock& block = block_of(index);
        queries.pages = {pages.page(0) + pages.head_offset(index_in_group_, index % num_kv_heads), pages.page_bytes(),
                         table.of(block.sequence)};
        queries.count = block.count;
        for (int64_t i = 0; i < block.count; ++i) {
            const int64_t row = row_of(block, i), position = batch.positions[row];
            queries.queries[i] = {scratch.queries.data() + (row * num_heads + head_of(block, index, i)) * query_bytes,
                                  config_.first_key(kind_.local, position), position + 1};
        }
    };
    const auto finish = [&](const QueryGroup&, int64_t index, int64_t i, float* result) {
        const QueryBlock& block = block_of(index);
        const int64_t head = head_of(block, index, i);
        float* row = scratch.projected.data() + row_of(block, i) * width;
        float* out = row + head * d;
        if (config_.family->norms_attention) {
            kernels.rms_norm(result, nullptr, d, config_.rms_norm_eps, out);
        } else {
            std::memcpy(out, result, static_cast<size_t>(d) * sizeof(float));
        }
        if (config_.family->gates_attention) {
            const float* gate = row + config_.query_width() + 2 * config_.key_width();
            kernels.multiply_by_sigmoid(out, gate + head * d, d);
        }
    };
    const Spans& spans = plan.spans[kind_.local];
    scratch.attention->run(machine, num_blocks * num_kv_heads, spans.longest, spans.total * num_kv_heads, fill, finish);
}

}  // namespace musespark
