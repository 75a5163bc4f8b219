#include "attention.h"

#include <algorithm>

namespace musespark {

namespace {

// Ask for memory that is needed in a microsecond. A page of the pool is a stranger to the processor's own prefetching,
// which ends at each 4 KiB; without this, reading a long context waits for one line after the other.
void prefetch(const std::byte* start, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(start + i, 0, 2);
}

}  // namespace

AttentionScratch::AttentionScratch(const HeadPage& head)
    : head_(head),
      scores_(static_cast<size_t>(kQueryRows * kPageTokens)),
      weights_(head.format == Format::bfloat16 ? scores_.size() : 0),
      partial_(static_cast<size_t>(kQueryRows * head.value_width())),
      total_(partial_.size()),
      lost_(partial_.size()),
      state_(static_cast<size_t>(kQueryRows)),
      query_rows_(static_cast<size_t>(kQueryRows)),
      weight_rows_(static_cast<size_t>(kQueryRows)) {
    for (int64_t i = 0; i < kQueryRows; ++i) {
        const size_t start = static_cast<size_t>(i * kPageTokens);
        weight_rows_[static_cast<size_t>(i)] =
            weights_.empty() ? static_cast<const void*>(&scores_[start]) : &weights_[start];
    }
}

void AttentionScratch::attend(const Kernels& kernels, const PageTable& pages, const Query* queries, int64_t count) {
    for (auto* sums : {&partial_, &total_, &lost_}) std::fill_n(sums->begin(), count * head_.value_width(), 0.0F);
    std::fill_n(state_.begin(), count, SoftmaxState{kSoftmaxStart, 0.0});
    for (int64_t i = 0; i < count; ++i) query_rows_[static_cast<size_t>(i)] = queries[i].row;
    const auto gemm = kernels.gemm[static_cast<int>(head_.format)];

    int64_t first = 0, end = 0;  // the queries that see something of the page: a range, as their keys ascend
    for (int64_t p = queries[0].first_key / kPageTokens; p * kPageTokens < queries[count - 1].end_key; ++p) {
        const int64_t start = p * kPageTokens;
        while (queries[first].end_key <= start) ++first;
        while (end < count && queries[end].first_key < start + kPageTokens) ++end;
        if (first >= end) continue;  // a gap between the windows of neighbouring queries
        const std::byte* page = pages.page(p);

        prefetch(page + head_.key_bytes(), head_.bytes() - head_.key_bytes());
        GemmBlock score = {};
        score.rows = query_rows_.data() + first;
        score.num_rows = end - first;
        score.panels = page;
        score.panel_bytes = head_.key_panel_bytes();
        score.num_panels = kPageTokens / kPanel;
        score.num_columns = kPageTokens;
        score.depth = head_.head_dim;
        score.out = scores_.data() + first * kPageTokens;
        score.out_stride = kPageTokens;
        gemm(score);

        for (int64_t i = first; i < end; ++i) {
            float* row = scores_.data() + i * kPageTokens;
            const int64_t low = std::max<int64_t>(queries[i].first_key - start, 0);
            const int64_t high = std::min(queries[i].end_key - start, kPageTokens);
            const float factor = kernels.softmax_page(row, low, high, &state_[static_cast<size_t>(i)]);
            if (factor != 1.0F) {
                for (float* sum : {partial(i), output(i), lost(i)}) kernels.scale(sum, factor, head_.value_width());
            }
            if (!weights_.empty())
                kernels.to_bfloat16(row, kPageTokens, &weights_[static_cast<size_t>(i * kPageTokens)], kPageTokens);
        }

        if ((p + 1) * kPageTokens < queries[count - 1].end_key) prefetch(pages.page(p + 1), head_.key_bytes());
        GemmBlock sum = {};
        sum.rows = weight_rows_.data() + first;
        sum.num_rows = end - first;
        sum.panels = page + head_.key_bytes();
        sum.panel_bytes = head_.value_panel_bytes();
        sum.num_panels = head_.value_panels();
        sum.num_columns = head_.value_width();
        sum.depth = kPageTokens;
        sum.out = partial(first);
        sum.out_stride = head_.value_width();
        sum.accumulate = true;
        gemm(sum);
        // By the number of the page, not of those that the row has seen: so it is the same for every neighbour.
        if ((p + 1) % kPagesPerFold == 0) {
            for (int64_t i = first; i < end; ++i) fold(kernels, i);
        }
    }
    for (int64_t i = 0; i < count; ++i) {
        fold(kernels, i);
        const auto factor = static_cast<float>(1.0 / state_[static_cast<size_t>(i)].sum);
        kernels.scale(output(i), factor, head_.head_dim);
    }
}

void AttentionScratch::fold(const Kernels& kernels, int64_t index) {
    kernels.add_compensated(output(index), lost(index), partial(index), head_.value_width());
    std::fill_n(partial(index), head_.value_width(), 0.0F);
}

}  // namespace musespark
