#include "batch.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "attention.h"
#include "kernels.h"

namespace musespark {

namespace {

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument("bad batch: " + message); }

std::string text(int64_t value) { return std::to_string(value); }

// Pages of a sequence: the first that its queries see, the first that this step writes, and the last.
struct PageRange {
    int64_t seen, written, last;
};

void check_ascending(const int32_t* rows, int64_t count, int64_t num_tokens, const char* name) {
    for (int64_t i = 0; i < count; ++i) {
        if (rows[i] < 0 || rows[i] >= num_tokens || (i > 0 && rows[i] <= rows[i - 1])) {
            fail(std::string(name) + " must be ascending row numbers below " + text(num_tokens) + "; entry " + text(i) +
                 " is " + text(rows[i]));
        }
    }
}

}  // namespace

BatchChecker::BatchChecker(const TextConfig& config, int64_t num_full_pages, int64_t num_sliding_pages)
    : config_(config) {
    for (const bool sliding : {false, true}) {
        const int64_t num_pages = sliding ? num_sliding_pages : num_full_pages;
        Group& group = groups_[sliding];
        group.used = config.num_layers(sliding) > 0;
        group.num_pages = num_pages;
        group.writer.reserve(num_pages, 1);  // zeroed, being new
    }
}

const Plan& BatchChecker::check(const Batch& batch) {
    plan_.page_runs.clear();
    plan_.query_blocks.clear();
    for (Spans& spans : plan_.spans) spans = {};
    check_rows(batch);
    stamp_ = next_stamp_;
    next_stamp_ += batch.num_sequences;  // now already: a batch that is refused half-way has left its stamps, too
    for (int64_t s = 0; s < batch.num_sequences; ++s) check_sequence(batch, s);
    check_pages(batch, false);
    check_pages(batch, true);
    return plan_;
}

void BatchChecker::check_rows(const Batch& b) const {
    for (int64_t row = 0; row < b.num_tokens; ++row) {
        if (b.token_ids[row] < 0 || b.token_ids[row] >= config_.vocab_size) {
            fail("token id " + text(b.token_ids[row]) + " in row " + text(row) + " is outside the vocabulary of " +
                 text(config_.vocab_size));
        }
    }
    check_ascending(b.embed_rows, b.num_embeds, b.num_tokens, "embed_rows");
    check_ascending(b.logit_rows, b.num_logits, b.num_tokens, "logit_rows");
    if (b.query_start[0] != 0 || b.query_start[b.num_sequences] != b.num_tokens) {
        fail("query_start must run from 0 to the " + text(b.num_tokens) + " tokens");
    }
    for (int64_t s = 0; s < b.num_sequences; ++s) {
        if (b.query_start[s] >= b.query_start[s + 1]) fail("sequence " + text(s) + " has no tokens");
    }
}

// Positions, and the sequence's part of the plan.
void BatchChecker::check_sequence(const Batch& b, int64_t sequence) {
    const int64_t begin = b.query_start[sequence], end = b.query_start[sequence + 1];
    const int64_t first = b.positions[begin];
    if (first < 0 || first >= config_.max_position_embeddings - (end - begin) + 1) {
        fail("positions of sequence " + text(sequence) + " start at " + text(first) + " and count " +
             text(end - begin) + " tokens; this model takes positions 0 to " +
             text(config_.max_position_embeddings - 1));
    }
    for (int64_t row = begin; row < end; ++row) {
        if (b.positions[row] != first + row - begin) {
            fail("position " + text(b.positions[row]) + " in row " + text(row) +
                 " is not the one after the row before");
        }
    }
    for (int64_t row = begin; row < end;) {
        const int64_t slot = b.positions[row] % kPageTokens;
        const int64_t count = std::min(kPageTokens - slot, end - row);
        plan_.page_runs.push_back({sequence, b.positions[row] / kPageTokens, row, count, slot});
        row += count;
    }
    const int64_t group = config_.num_attention_heads / config_.num_key_value_heads, queries = (end - begin) * group;
    for (int64_t q = 0; q < queries; q += kQueryRows) {
        const int64_t count = std::min(kQueryRows, queries - q);
        plan_.query_blocks.push_back({sequence, q, count});
        for (const bool local : {false, true}) {
            const int64_t first_key = config_.first_key(local, first + q / group);
            const int64_t length = ranges_between(first_key, first + (q + count - 1) / group + 1);
            Spans& spans = plan_.spans[local];
            spans = {std::max(spans.longest, length), spans.total + length};
        }
    }
}

// Every page that a query can see is there, and no page that this step writes is seen by another sequence.
void BatchChecker::check_pages(const Batch& b, bool sliding) {
    Group& group = groups_[sliding];
    if (!group.used) return;
    const std::string name = sliding ? "sliding_block_table" : "full_block_table";
    const int32_t* table = sliding ? b.sliding_block_table : b.full_block_table;
    const int64_t columns = sliding ? b.sliding_columns : b.full_columns;
    const auto page_range = [&](int64_t s) {
        const int64_t begin = b.positions[b.query_start[s]], last = b.positions[b.query_start[s + 1] - 1];
        return PageRange{config_.first_key(sliding, begin) / kPageTokens, begin / kPageTokens, last / kPageTokens};
    };
    for (int64_t s = 0; s < b.num_sequences; ++s) {
        const auto [seen, written, last] = page_range(s);
        if (last >= columns) {
            fail(name + " has " + text(columns) + " columns, sequence " + text(s) + " needs " + text(last + 1));
        }
        for (int64_t p = seen; p <= last; ++p) {
            const int64_t id = table[s * columns + p];
            if (id < 0 || id >= group.num_pages) {
                fail(name + " of sequence " + text(s) + " holds page id " + text(id) + " at " + text(p) +
                     "; there are " + text(group.num_pages) + " pages");
            }
            if (p < written) continue;
            if (group.writer.data()[id] > stamp_) {
                fail(name + " holds page id " + text(id) + " twice among the pages that are written");
            }
            group.writer.data()[id] = stamp_ + s + 1;
        }
    }
    for (int64_t s = 0; s < b.num_sequences; ++s) {
        const auto [seen, written, last] = page_range(s);
        for (int64_t p = seen; p < written; ++p) {
            const int32_t id = table[s * columns + p];
            if (group.writer.data()[id] > stamp_) {
                fail(name + ": sequence " + text(s) + " sees page id " + text(id) +
                     ", which this step writes for another page");
            }
        }
    }
}

}  // namespace musespark
