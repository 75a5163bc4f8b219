// The attention of the image towers: the pages and the softmax are those of the text, the pages are scratch. Scores
// exist for one page and a block of queries at a time, never for all pairs of patches.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "vision_layers.h"

namespace musespark {

// Attention within each segment, without a causal mask; the result is left as operand rows for the output projection.
void VisionLayers::attend(const Machine& machine, VisionWorkspace& work, const std::vector<Segment>& segments,
                          int64_t num_rows) const {
    const Kernels& kernels = machine.kernels;
    const int64_t c = config_.hidden_size, d = config_.head_dim(), num_heads = config_.num_attention_heads;
    const int64_t query_bytes = d * head_.element_bytes();
    fill_pages(machine, work, segments, num_rows);
    std::vector<Segment> blocks;  // of at most kQueryRows rows
    std::vector<size_t> segment_of;
    for (size_t s = 0; s < segments.size(); ++s) {
        for (int64_t first = 0; first < segments[s].count; first += kQueryRows) {
            blocks.push_back({segments[s].first + first, std::min(kQueryRows, segments[s].count - first)});
            segment_of.push_back(s);
        }
    }
    machine.pool.run(static_cast<int64_t>(blocks.size()) * num_heads, [&](int64_t task, int thread) {
        const auto index = static_cast<size_t>(task / num_heads);
        const int64_t h = task % num_heads;
        const Segment& block = blocks[index];
        Query queries[kQueryRows];
        for (int64_t i = 0; i < block.count; ++i) {
            queries[i] = {work.queries.data() + ((block.first + i) * num_heads + h) * query_bytes, 0,
                          segments[segment_of[index]].count};
        }
        const std::byte* first_page =
            work.pages.data() + (work.first_page[segment_of[index]] * num_heads + h) * head_.bytes();
        AttentionScratch& scratch = work.attention[static_cast<size_t>(thread)];
        scratch.attend(kernels, {first_page, num_heads * head_.bytes(), nullptr}, queries, block.count);
        for (int64_t i = 0; i < block.count; ++i) {
            std::copy_n(scratch.output(i), d, work.projected.data() + (block.first + i) * 3 * c + h * d);
        }
    });
    for_rows(machine, num_rows, c,
             [&](int64_t i) { work.operand.prepare(kernels, i, work.projected.data() + i * 3 * c, c); });
}

// Turn q and k; store the queries as operands, k and v in pages of 64 that start anew with each segment.
void VisionLayers::fill_pages(const Machine& machine, VisionWorkspace& work, const std::vector<Segment>& segments,
                              int64_t num_rows) const {
    const Kernels& kernels = machine.kernels;
    const int64_t c = config_.hidden_size, d = config_.head_dim(), num_heads = config_.num_attention_heads;
    const int64_t query_bytes = d * head_.element_bytes();
    const float query_scale = std::numbers::log2e_v<float> / std::sqrt(static_cast<float>(d));
    work.page_rows.clear();
    work.first_page.clear();
    for (const Segment& segment : segments) {
        work.first_page.push_back(static_cast<int64_t>(work.page_rows.size()));
        for (int64_t row = 0; row < segment.count; row += kPageTokens) {
            work.page_rows.push_back({segment.first + row, std::min(kPageTokens, segment.count - row)});
        }
    }
    const auto num_pages = static_cast<int64_t>(work.page_rows.size());
    std::byte* pages = work.pages.reserve(num_pages, num_heads * head_.bytes());
    std::byte* queries = work.queries.reserve(num_rows, num_heads * query_bytes);
    machine.pool.run(num_pages, [&](int64_t index, int) {
        const Segment& rows = work.page_rows[static_cast<size_t>(index)];
        std::byte* page = pages + index * num_heads * head_.bytes();
        // What an earlier image left must not meet a weight of zero: 0 * NaN would be NaN.
        if (rows.count < kPageTokens) std::memset(page, 0, static_cast<size_t>(num_heads * head_.bytes()));
        for (int64_t slot = 0; slot < rows.count; ++slot) {
            const int64_t row = rows.first + slot;
            float* q = work.projected.data() + row * 3 * c;
            float* k = q + c;
            const float* cosine = work.rotary.data() + row * d;
            for (int64_t h = 0; h < 2 * num_heads; ++h) rotate_(q + h * d, cosine, cosine + d / 2, d / 2);
            kernels.scale(q, query_scale, c);
            std::byte* query = queries + row * num_heads * query_bytes;
            if (head_.format == Format::float32) {
                std::memcpy(query, q, static_cast<size_t>(num_heads * query_bytes));
            } else {
                kernels.to_bfloat16(q, c, reinterpret_cast<uint16_t*>(query), c);
            }
            for (int64_t h = 0; h < num_heads; ++h)
                head_.put(kernels, page + h * head_.bytes(), slot, k + h * d, k + c + h * d);
        }
    });
}

}  // namespace musespark
