// Keys and values in pages of 64 tokens.
//
// A page of one layer and kv head is laid out as two packed matrices, exactly as weights are (kernels.h): K with the
// tokens as outputs and the head's channels as inputs, V with the channels as outputs and the tokens as inputs. So
// scores and weighted sums are the ordinary matrix products, and attention needs no kernels of its own beside the
// softmax.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "kernels.h"

namespace musespark {

struct HeadPage {
    Format format = Format::float32;  // float32 or bfloat16
    int64_t head_dim = 0;             // even

    int64_t element_bytes() const { return format == Format::float32 ? 4 : 2; }
    int64_t value_panels() const { return divide_up(head_dim, kPanel); }
    int64_t value_width() const { return value_panels() * kPanel; }
    int64_t key_panel_bytes() const { return head_dim * kPanel * element_bytes(); }
    int64_t value_panel_bytes() const { return kPageTokens * kPanel * element_bytes(); }
    int64_t key_bytes() const { return kPageTokens / kPanel * key_panel_bytes(); }
    int64_t bytes() const { return key_bytes() + value_panels() * value_panel_bytes(); }

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
