// The attention of the image towers: the pages and the softmax are those of the text, the pages are scratch. Scores
// exist for one page and a block of queries at a time, never for all pairs of patches.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "vision_layers.h"

namespace musespark {

namespace {

// The first of the pieces, which ascend, that ends after `row`.
size_t first_after(const std::vector<Segment>& pieces, int64_t row) {
    const auto ends_after = [](int64_t r, const Segment& piece) { return r < piece.first + piece.count; };
    return static_cast<size_t>(std::upper_bound(pieces.begin(), pieces.end(), row, ends_after) - pieces.begin());
}

}  // namespace

// Turn q and k; store the queries as operands, k and v in their pages.
void VisionLayers::fill_pages(const Machine& machine, VisionScratch& scratch, ImageRows& image,
                              const SegmentPages& layout, const Segment& rows) const {
    const Kernels& kernels = machine.kernels;
    const int64_t c = config_.hidden_size, d = config_.head_dim(), num_heads = config_.num_attention_heads;
    const float query_scale = std::numbers::log2e_v<float> / std::sqrt(static_cast<float>(d));
    const size_t first_page = first_after(layout.pages, rows.first);
    const size_t last_page = first_after(layout.pages, rows.first + rows.count - 1);
    machine.pool.run(static_cast<int64_t>(last_page - first_page + 1), [&](int64_t index, int) {
        const size_t page_index = first_page + static_cast<size_t>(index);
        const Segment& in_page = layout.pages[page_index];
        std::byte* page = image.pages.data() + static_cast<int64_t>(page_index) * num_heads * head_.bytes();
        const int64_t begin = std::max(rows.first, in_page.first);
        const int64_t end = std::min(rows.first + rows.count, in_page.first + in_page.count);
        // What another layer left must not meet a weight of zero: 0 * NaN would be NaN.
        if (begin == in_page.first && in_page.count < kPageTokens) {
            std::memset(page, 0, static_cast<size_t>(num_heads * head_.bytes()));
        }
        for (int64_t row = begin; row < end; ++row) {
            float* q = scratch.projected.data() + (row - rows.first) * 3 * c;
            float* k = q + c;
            const float* cosine = image.rotary.data() + row * d;
            for (int64_t h = 0; h < 2 * num_heads; ++h) rotate_(q + h * d, cosine, cosine + d / 2, d / 2);
            kernels.scale(q, query_scale, c);
            for (int64_t h = 0; h < num_heads; ++h) {
                head_.prepare(kernels, q + h * d, image.queries.data() + (row * num_heads + h) * head_.query_bytes());
                head_.put(kernels, page + h * head_.bytes(), row - in_page.first, k + h * d, k + c + h * d);
            }
        }
    });
}

// Attention of some rows within their segments, without a causal mask; the result is left as operand rows for the
// output projection.
void VisionLayers::attend_pages(const Machine& machine, VisionScratch& scratch, const ImageRows& image,
                                const SegmentPages& layout, const Segment& rows) const {
    const int64_t c = config_.hidden_size, d = config_.head_dim(), num_heads = config_.num_attention_heads;
    struct Block {  // of at most kQueryRows rows of a segment
        int64_t first, count;
        size_t segment;
    };
    std::vector<Block> blocks;
    const int64_t end = rows.first + rows.count;
    for (int64_t row = rows.first; row < end;) {
        const size_t s = first_after(layout.segments, row);
        const Segment& segment = layout.segments[s];
        blocks.push_back({row, std::min({kQueryRows, end - row, segment.first + segment.count - row}), s});
        row += blocks.back().count;
    }
    const auto fill = [&](int64_t index, QueryGroup& group) {
        const Block& block = blocks[static_cast<size_t>(index / num_heads)];
        const int64_t h = index % num_heads, seen = layout.segments[block.segment].count;
        group.pages = {image.pages.data() + (layout.first_page[block.segment] * num_heads + h) * head_.bytes(),
                       num_heads * head_.bytes(), nullptr};
        group.count = block.count;
        for (int64_t i = 0; i < group.count; ++i) {
            group.queries[i] = {image.queries.data() + ((block.first + i) * num_heads + h) * head_.query_bytes(), 0,
                                seen};
        }
    };
    float* attended = scratch.projected.reserve(rows.count, c);
    const auto finish = [&](const QueryGroup&, int64_t index, int64_t i, const float* result) {
        const int64_t row = blocks[static_cast<size_t>(index / num_heads)].first + i - rows.first;
        std::copy_n(result, d, attended + row * c + index % num_heads * d);
    };
    scratch.attention->run(machine, static_cast<int64_t>(blocks.size()) * num_heads, 1, 1, fill, finish);
    for_rows(machine, rows.count, c,
             [&](int64_t i) { scratch.operand.prepare(machine.kernels, i, attended + i * c, c); });
}

}  // namespace musespark
