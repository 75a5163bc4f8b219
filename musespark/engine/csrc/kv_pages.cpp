#include "kv_pages.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace musespark {

namespace {

// Channels are brought to the page's format so many at a time.
constexpr int64_t kChunk = 64;

// Spread one token over a page: channel d of k and v, `inputs` to a word.
template <class T>
void scatter(const HeadPage& head, std::byte* page, int64_t slot, int64_t start, int64_t count, const T* k, const T* v) {
    const int64_t inputs = head.inputs_per_word(), lane = slot % kPanel;
    auto* keys = reinterpret_cast<T*>(page + slot / kPanel * head.key_panel_bytes());
    auto* values = reinterpret_cast<T*>(page + head.key_bytes());
    for (int64_t i = 0; i < count; ++i) {
        const int64_t d = start + i;
        keys[(d / inputs * kPanel + lane) * inputs + d % inputs] = k[i];
        values[((d / kPanel * kPageTokens / inputs + slot / inputs) * kPanel + d % kPanel) * inputs + slot % inputs] = v[i];
    }
}

}  // namespace

void HeadPage::prepare(const Kernels& kernels, const float* q, std::byte* row) const {
    if (format == Format::float32) {
        std::memcpy(row, q, static_cast<size_t>(query_bytes()));
    } else if (format == Format::bfloat16) {
        kernels.to_bfloat16(q, head_dim, reinterpret_cast<uint16_t*>(row), head_dim);
    } else {
        kernels.to_int8(q, head_dim, row, key_depth(), key_depth());
    }
}

void HeadPage::put(const Kernels& kernels, std::byte* page, int64_t slot, const float* k, const float* v) const {
    if (format == Format::float32) {
        scatter(*this, page, slot, 0, head_dim, k, v);
        return;
    }
    if (format == Format::bfloat16) {
        for (int64_t start = 0; start < head_dim; start += kChunk) {
            const int64_t count = head_dim - start < kChunk ? head_dim - start : kChunk;
            uint16_t k16[kChunk], v16[kChunk];
            kernels.to_bfloat16(k + start, count, k16, count);
            kernels.to_bfloat16(v + start, count, v16, count);
            scatter(*this, page, slot, start, count, k16, v16);
        }
        return;
    }
    std::byte k8[kLargestInt8Head + sizeof(RowGroup)], v8[kLargestInt8Head + sizeof(RowGroup)];
    kernels.to_int8(k, head_dim, k8, key_depth(), key_depth());
    kernels.to_int8(v, head_dim, v8, key_depth(), key_depth());
    for (int64_t d = 0; d < head_dim; ++d) k8[d] ^= std::byte{kernels.int8_weight_xor};
    scatter(*this, page, slot, 0, head_dim, k8, v8);
    RowGroup k_group, v_group;
    std::memcpy(&k_group, k8 + key_depth(), sizeof k_group);
    std::memcpy(&v_group, v8 + key_depth(), sizeof v_group);
    // A value that is not finite must come out as such, which rounded weights would not see to: its score does.
    if (!std::isfinite(v_group.scale)) k_group.scale = std::numeric_limits<float>::quiet_NaN();
    auto* scales = reinterpret_cast<float*>(page + scale_offset());
    scales[slot] = k_group.scale;
    scales[kPageTokens + slot] = v_group.scale;
}

}  // namespace musespark
