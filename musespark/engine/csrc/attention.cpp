#include "attention.h"

#include <algorithm>
#include <cmath>

namespace musespark {

namespace {

// Parts in a wave, for each thread: many, so that the last ones to finish leave little time unused.
constexpr int kPartsPerThread = 16;

size_t rows_of(int64_t columns) { return static_cast<size_t>(kQueryRows * columns); }

}  // namespace

RangeSums::RangeSums(const HeadPage& head)
    : head_(head), maxima_(rows_of(1)), lanes_(rows_of(kPanel)), weighted_(rows_of(head.value_width())) {}

void RangeSums::attend(const Kernels& kernels, const QueryGroup& group, int64_t range) {
    const int64_t width = head_.value_width(), count = group.count;
    std::fill_n(maxima_.begin(), count, kSoftmaxStart);
    std::fill_n(lanes_.begin(), count * kPanel, 0.0F);
    std::fill_n(weighted_.begin(), count * width, 0.0F);
    const auto attend_page = kernels.attend_page[static_cast<int>(head_.format)];
    const Query* queries = group.queries;
    const int64_t last_page = (queries[count - 1].end_key - 1) / kPageTokens;
    const int64_t begin = std::max(range * kPagesPerRange, queries[0].first_key / kPageTokens);
    const int64_t end = std::min((range + 1) * kPagesPerRange, last_page + 1);

    PageQuery rows[kQueryRows];
    PageBlock block = {};
    block.queries = rows;
    block.head_dim = head_.head_dim;
    int64_t first = 0, past = 0;  // the queries that see something of the page: a range, as their keys ascend
    for (int64_t p = begin; p < end; ++p) {
        const int64_t start = p * kPageTokens;
        while (first < count && queries[first].end_key <= start) ++first;
        while (past < count && queries[past].first_key < start + kPageTokens) ++past;
        if (first >= past) continue;  // a gap between the windows of neighbouring queries
        for (int64_t i = first; i < past; ++i) {
            rows[i - first] = {queries[i].row, std::max<int64_t>(queries[i].first_key - start, 0),
                               std::min(queries[i].end_key - start, kPageTokens)};
        }
        block.num_rows = past - first;
        block.page = group.pages.page(p);
        block.ahead = p < last_page ? group.pages.page(p + 1) - block.page : 0;
        block.maxima = maxima_.data() + first;
        block.sums = lanes_.data() + first * kPanel;
        block.weighted = weighted_.data() + first * width;
        attend_page(block);
    }
}

AttentionSums::AttentionSums(const HeadPage& head)
    : head_(head),
      maxima_(rows_of(1)),
      sums_(rows_of(1)),
      weighted_(rows_of(head.value_width())),
      lost_(rows_of(head.value_width())) {}

void AttentionSums::start(int64_t count) {
    std::fill_n(maxima_.begin(), count, kSoftmaxStart);
    std::fill_n(sums_.begin(), count, 0.0);
    for (auto* sums : {&weighted_, &lost_}) std::fill_n(sums->begin(), count * head_.value_width(), 0.0F);
}

void AttentionSums::add(const Kernels& kernels, RangeSums& range, int64_t count) {
    const int64_t width = head_.value_width();
    for (int64_t row = 0; row < count; ++row) {
        const auto i = static_cast<size_t>(row);
        const float before = maxima_[i], other = range.maxima_[i];
        if (other == kSoftmaxStart) continue;  // nothing of the range is seen
        maxima_[i] = other > before ? other : before;
        const float keep = std::exp2(before - maxima_[i]), join = std::exp2(other - maxima_[i]);
        double sum = 0.0;
        for (int64_t lane = 0; lane < kPanel; ++lane) sum += range.lanes_[static_cast<size_t>(row * kPanel + lane)];
        sums_[i] = sums_[i] * keep + sum * join;
        float* weighted = weighted_.data() + row * width;
        float* lost = lost_.data() + row * width;
        float* added = range.weighted_.data() + row * width;
        if (keep != 1.0F) {
            for (float* sums : {weighted, lost}) kernels.scale(sums, keep, width);
        }
        if (join != 1.0F) kernels.scale(added, join, width);
        kernels.add_compensated(weighted, lost, added, width);
    }
}

float* AttentionSums::result(const Kernels& kernels, int64_t row) {
    float* weighted = weighted_.data() + row * head_.value_width();
    kernels.scale(weighted, static_cast<float>(1.0 / sums_[static_cast<size_t>(row)]), head_.head_dim);
    return weighted;
}

Attention::Attention(const HeadPage& head, int num_threads) : head_(head) {
    for (int thread = 0; thread < num_threads; ++thread) workers_.push_back({RangeSums(head), AttentionSums(head)});
    if (num_threads > 1) shared_.assign(static_cast<size_t>(num_threads * kPartsPerThread), RangeSums(head));
    parts_.reserve(shared_.size());
}

}  // namespace musespark
