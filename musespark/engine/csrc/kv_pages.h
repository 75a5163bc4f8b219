// Keys and values in pages of 64 tokens, in float32, bfloat16 or int8.
//
// A page of one layer and kv head holds two packed matrices in the panels of weights (kernels.h): K with the tokens as
// outputs and the head's channels as inputs, V with the channels as outputs and the tokens as inputs. In int8 each token
// has two scales behind them, the largest |k| and |v| of its head / 127. So what is stored of a token depends on that
// token only, whatever pieces a prompt comes in and whoever shares the page: a scale of the page or of a channel would
// have to be known before its last token, or change what is stored already.
#pragma once

#include "buffer.h"
#include "kernels.h"

namespace musespark {

// The widest head that fits in int8 pages: a row of it is on the stack for a moment.
constexpr int64_t kLargestInt8Head = 1024;

struct HeadPage {
    Format format = Format::float32;  // float32, bfloat16 or int8
    int64_t head_dim = 0;             // even

    int64_t inputs_per_word() const { return format == Format::float32 ? 1 : format == Format::bfloat16 ? 2 : 4; }
    int64_t value_panels() const { return divide_up(head_dim, kPanel); }
    int64_t value_width() const { return value_panels() * kPanel; }
    int64_t key_depth() const { return round_up(head_dim, inputs_per_word()); }
    int64_t key_panel_bytes() const { return key_depth() / inputs_per_word() * kStepBytes; }
    int64_t value_panel_bytes() const { return kPageTokens / inputs_per_word() * kStepBytes; }
    int64_t key_bytes() const { return kPageTokens / kPanel * key_panel_bytes(); }
    int64_t scale_offset() const { return key_bytes() + value_panels() * value_panel_bytes(); }
    int64_t scale_bytes() const {  // of keys, then of values
        return format == Format::int8 ? 2 * kPageTokens * static_cast<int64_t>(sizeof(float)) : 0;
    }
    int64_t bytes() const { return scale_offset() + scale_bytes(); }

    // Of a prepared query.
    int64_t query_bytes() const {
        return key_depth() * 4 / inputs_per_word() + (format == Format::int8 ? static_cast<int64_t>(sizeof(RowGroup)) : 0);
    }
    // Prepare a query of head_dim floats.
    void prepare(const Kernels& kernels, const float* q, std::byte* row) const;

    // Store one token's k and v (head_dim floats each) at `slot` of the page.
    void put(const Kernels& kernels, std::byte* page, int64_t slot, const float* k, const float* v) const;
};

// All pages of a group of layers: page id, then layer, then kv head.
class PagePool {
public:
    PagePool() = default;
    PagePool(HeadPage head, int64_t num_layers, int64_t num_heads, int64_t num_pages)
        : head_(head),
          num_layers_(num_layers),
          num_heads_(num_heads),
          num_pages_(num_pages),
          memory_(checked_product({num_pages, page_bytes(head, num_layers, num_heads)}), true) {}

    static int64_t page_bytes(HeadPage head, int64_t num_layers, int64_t num_heads) {
        return checked_product({num_layers, num_heads, head.bytes()});
    }

    const HeadPage& head() const { return head_; }
    int64_t num_pages() const { return num_pages_; }
    int64_t page_bytes() const { return page_bytes(head_, num_layers_, num_heads_); }
    int64_t head_offset(int64_t layer, int64_t kv_head) const { return (layer * num_heads_ + kv_head) * head_.bytes(); }
    std::byte* page(int64_t id) const { return memory_.data() + id * page_bytes(); }

private:
    HeadPage head_;
    int64_t num_layers_ = 0;
    int64_t num_heads_ = 0;
    int64_t num_pages_ = 0;
    Bytes memory_;
};

}  // namespace musespark
