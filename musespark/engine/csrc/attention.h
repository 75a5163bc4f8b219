// Attention of a block of query rows over pages of keys and values: online softmax, page after page in ascending order,
// with accumulators for each row. A page in which a row sees nothing leaves that row as it was, bit for bit, so it
// does not matter which rows are computed together.
//
// Weighted values are summed over 16 pages in one chain, and then added to the row's total with compensation: one chain
// over the 163,840 pages of ten million tokens would lose a tenth of a sum of equal values.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "kv_pages.h"

namespace musespark {

// Query rows in a block: their scores for one page, 8 KiB, stay in the first cache beside the page.
constexpr int64_t kQueryRows = 32;

// Pages between two folds: few enough for a chain of float32 additions, enough that folding costs nothing.
constexpr int64_t kPagesPerFold = 16;

// Where the pages of one (layer, kv head) are: page p at base + id * page_bytes, id = table[p], or p without a table.
struct PageTable {
    const std::byte* base;
    int64_t page_bytes;
    const int32_t* ids;

    const std::byte* page(int64_t index) const { return base + (ids ? ids[index] : index) * page_bytes; }
};

// One query: its prepared row (kernels.h) and the keys [first_key, end_key) that it sees, at least one.
struct Query {
    const void* row;
    int64_t first_key;
    int64_t end_key;
};

// The working memory of one thread.
class AttentionScratch {
public:
    explicit AttentionScratch(const HeadPage& head);
    AttentionScratch(const AttentionScratch&) = delete;  // a copy would point into the original
    AttentionScratch(AttentionScratch&&) = default;

    // Attend `count` <= kQueryRows queries, whose first and end keys must not decrease from one to the next. Scores are
    // q.k in units of log2: queries come scaled. Afterwards `output(i)` holds the weighted mean of V, head_dim floats.
    void attend(const Kernels& kernels, const PageTable& pages, const Query* queries, int64_t count);

    // (count, value_width) after `attend`.
    float* output(int64_t index) { return total_.data() + index * head_.value_width(); }

private:
    float* partial(int64_t index) { return partial_.data() + index * head_.value_width(); }
    float* lost(int64_t index) { return lost_.data() + index * head_.value_width(); }
    void fold(const Kernels& kernels, int64_t index);

    HeadPage head_;
    std::vector<float> scores_;            // (kQueryRows, 64)
    std::vector<uint16_t> weights_;        // the same in bfloat16, where V is
    std::vector<float> partial_;           // (kQueryRows, value_width) of the pages since the last fold
    std::vector<float> total_, lost_;      // (kQueryRows, value_width) of those before
    std::vector<SoftmaxState> state_;      // (kQueryRows)
    std::vector<const void*> query_rows_;  // pointers for the products
    std::vector<const void*> weight_rows_;
};

}  // namespace musespark
