// A batch as it comes from the engine (musespark/engine/runner.py), checked before anything is touched, and the plan of
// a step: which rows go to which page, and the work items of attention.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "config.h"

namespace musespark {

// Views of the arrays of a Batch; N tokens, S sequences, P table columns, M image rows, R logit rows.
struct Batch {
    int64_t num_tokens, num_sequences, full_columns, sliding_columns, num_embeds, num_logits;
    const int32_t* token_ids;
    const int64_t* positions;
    const int32_t* query_start;
    const int32_t* full_block_table;
    const int32_t* sliding_block_table;
    const int32_t* embed_rows;
    const float* embeds;
    const int32_t* logit_rows;
};

// Rows [first_row, first_row + num_rows) of the batch that lie in one page of one sequence.
struct PageRun {
    int64_t sequence;
    int64_t page;  // index in the block table
    int64_t first_row;
    int64_t num_rows;
    int64_t first_slot;
};

// Queries of one sequence that one attention task takes for one kv head: (row, query head) pairs
// [first, first + count), counted from the sequence's first row, query heads of the kv head innermost.
struct QueryBlock {
    int64_t sequence;
    int64_t first;
    int64_t count;
};

// Ranges of pages (attention.h) that query blocks see: the most that one does, and the sum.
struct Spans {
    int64_t longest, total;
};

struct Plan {
    std::vector<PageRun> page_runs;
    std::vector<QueryBlock> query_blocks;
    Spans spans[2];  // in full and in local layers
};

// Checks every length, id, position and page, and plans the step. After it, nothing in the batch can lead outside the
// runner's memory. Throws std::invalid_argument saying what is wrong.
class BatchChecker {
public:
    BatchChecker(const TextConfig& config, int64_t num_full_pages, int64_t num_sliding_pages);

    // The plan stays valid until the next call.
    const Plan& check(const Batch& batch);

private:
    struct Group {
        bool used;
        int64_t num_pages;
        Scratch<int64_t> writer;  // by page id: the stamp of the last sequence that wrote to it
    };

    void check_rows(const Batch& batch) const;
    void check_sequence(const Batch& batch, int64_t sequence);
    void check_pages(const Batch& batch, bool sliding);

    const TextConfig& config_;
    Group groups_[2];    // full, sliding: the pages of local layers
    int64_t stamp_ = 0;  // sequences of all batches before this one; those of this batch get the numbers after it
    int64_t next_stamp_ = 0;
    Plan plan_;
};

}  // namespace musespark
