#include "kv_pages.h"

namespace musespark {

void HeadPage::put(const Kernels& kernels, std::byte* page, int64_t slot, const float* k, const float* v) const {
    std::byte* key = page + slot / kPanel * key_panel_bytes();
    const int64_t lane = slot % kPanel;
    if (format == Format::float32) {
        auto* keys = reinterpret_cast<float*>(key);
        auto* values = reinterpret_cast<float*>(page + key_bytes());
        for (int64_t d = 0; d < head_dim; ++d) {
            keys[d * kPanel + lane] = k[d];
            values[(d / kPanel * kPageTokens + slot) * kPanel + d % kPanel] = v[d];
        }
        return;
    }
    auto* keys = reinterpret_cast<uint16_t*>(key);
    auto* values = reinterpret_cast<uint16_t*>(page + key_bytes());
    constexpr int64_t kChunk = 64;
    for (int64_t start = 0; start < head_dim; start += kChunk) {
        const int64_t count = head_dim - start < kChunk ? head_dim - start : kChunk;
        uint16_t k16[kChunk], v16[kChunk];
        kernels.to_bfloat16(k + start, count, k16, count);
        kernels.to_bfloat16(v + start, count, v16, count);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t d = start + i;
            keys[(d / 2 * kPanel + lane) * 2 + d % 2] = k16[i];
            values[((d / kPanel * kPageTokens / 2 + slot / 2) * kPanel + d % kPanel) * 2 + slot % 2] = v16[i];
        }
    }
}

}  // namespace musespark
