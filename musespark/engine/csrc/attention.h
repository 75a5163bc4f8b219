// Attention of query rows over pages of keys and values, with online softmax, for text and images.
//
// The pages of a sequence are taken in ranges of 16, counted from its start. Each range is summed up on its own, page
// after page, and ranges are joined in ascending order with compensation. A row is left as it is, bit for bit, by pages
// and ranges in which it sees nothing. So a row's result depends on its own keys only: not on the rows that are computed
// with it, and not on whether one thread takes all its ranges or several threads share them. One chain of additions over
// the 163,840 pages of ten million tokens would lose a tenth of a sum of equal values; a chain of 16 pages loses nothing
// that counts.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "kv_pages.h"
#include "operand.h"

namespace musespark {

// Query rows in a block: enough that reading a page is small beside its products.
constexpr int64_t kQueryRows = 32;

constexpr int64_t kPagesPerRange = 16;

// Ranges that keys [first_key, end_key) lie in.
constexpr int64_t ranges_between(int64_t first_key, int64_t end_key) {
    return divide_up(end_key, kPageTokens * kPagesPerRange) - first_key / (kPageTokens * kPagesPerRange);
}

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

// Queries that are computed together, at most kQueryRows; first and end keys must not decrease from one to the next.
struct QueryGroup {
    PageTable pages;
    int64_t count;
    Query queries[kQueryRows];

    int64_t first_range() const { return queries[0].first_key / (kPageTokens * kPagesPerRange); }
    int64_t end_range() const { return divide_up(queries[count - 1].end_key, kPageTokens * kPagesPerRange); }
};

// The sums of a group's rows over one range.
class RangeSums {
public:
    explicit RangeSums(const HeadPage& head);

    void attend(const Kernels& kernels, const QueryGroup& group, int64_t range);

private:
    friend class AttentionSums;

    HeadPage head_;
    std::vector<float> maxima_, lanes_, weighted_;  // as in PageBlock
};

// The sums of a group's rows over all ranges so far.
class AttentionSums {
public:
    explicit AttentionSums(const HeadPage& head);

    void start(int64_t count);
    void add(const Kernels& kernels, RangeSums& range, int64_t count);
    // The weighted mean of V of one row, head_dim floats, which may be changed. Once, after the last range.
    float* result(const Kernels& kernels, int64_t row);

private:
    HeadPage head_;
    std::vector<float> maxima_;
    std::vector<double> sums_;  // of weights: ten million of them in float would lose digits
    std::vector<float> weighted_, lost_;
};

// The attention of one step or layer on all threads; it owns their working memory.
class Attention {
public:
    Attention(const HeadPage& head, int num_threads);

    // fill(i, group) describes group i of `count`; finish(group, i, row, result) takes what AttentionSums gives, on any
    // thread. `longest` and `total` are the ranges of the longest group and of all.
    template <class Fill, class Finish>
    void run(const Machine& machine, int64_t count, int64_t longest, int64_t total, const Fill& fill,
             const Finish& finish) {
        // Where the longest group would keep one thread busy while the others have nothing left, threads share groups.
        if (machine.pool.num_threads() > 1 && longest > 1 && longest * machine.pool.num_threads() * 2 > total) {
            run_by_ranges(machine, count, fill, finish);
            return;
        }
        machine.pool.run(count, [&](int64_t index, int thread) {
            QueryGroup group;
            fill(index, group);
            Worker& worker = workers_[static_cast<size_t>(thread)];
            worker.sums.start(group.count);
            for (int64_t range = group.first_range(); range < group.end_range(); ++range) {
                worker.range.attend(machine.kernels, group, range);
                worker.sums.add(machine.kernels, worker.range, group.count);
            }
            for (int64_t i = 0; i < group.count; ++i) finish(group, index, i, worker.sums.result(machine.kernels, i));
        });
    }

private:
    struct Worker {
        RangeSums range;
        AttentionSums sums;
    };
    struct Part {
        int64_t index, range;
        bool first, last;  // of its group
        QueryGroup group;
    };

    template <class Fill, class Finish>
    void run_by_ranges(const Machine& machine, int64_t count, const Fill& fill, const Finish& finish);

    HeadPage head_;
    std::vector<Worker> workers_;  // by thread
    std::vector<RangeSums> shared_;
    std::vector<Part> parts_;
};

// Ranges of all groups in one row, a wave of them at a time: computed by all threads, joined in order by this one.
template <class Fill, class Finish>
void Attention::run_by_ranges(const Machine& machine, int64_t count, const Fill& fill, const Finish& finish) {
    AttentionSums& sums = workers_[0].sums;
    const auto flush = [&] {
        machine.pool.run(static_cast<int64_t>(parts_.size()), [&](int64_t i, int) {
            const Part& part = parts_[static_cast<size_t>(i)];
            shared_[static_cast<size_t>(i)].attend(machine.kernels, part.group, part.range);
        });
        for (size_t i = 0; i < parts_.size(); ++i) {
            const Part& part = parts_[i];
            if (part.first) sums.start(part.group.count);
            sums.add(machine.kernels, shared_[i], part.group.count);
            if (!part.last) continue;
            for (int64_t row = 0; row < part.group.count; ++row) {
                finish(part.group, part.index, row, sums.result(machine.kernels, row));
            }
        }
        parts_.clear();
    };
    for (int64_t index = 0; index < count; ++index) {
        QueryGroup group;
        fill(index, group);
        for (int64_t range = group.first_range(); range < group.end_range(); ++range) {
            parts_.push_back({index, range, range == group.first_range(), range + 1 == group.end_range(), group});
            if (parts_.size() == shared_.size()) flush();
        }
    }
    flush();
}

}  // namespace musespark
