#include "buffer.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#define MUSESPARK_HAS_MMAP 1
#endif

namespace musespark {

namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kMapFrom = 1 << 20;  // below this, the general allocator is the better citizen

bool is_mapped(int64_t size) {
#ifdef MUSESPARK_HAS_MMAP
    return size >= kMapFrom;
#else
    (void)size;
    return false;
#endif
}

}  // namespace

int64_t checked_product(std::initializer_list<int64_t> dimensions) {
    int64_t product = 1;
    for (const int64_t dimension : dimensions) {
        if (dimension < 0 || __builtin_mul_overflow(product, dimension, &product)) {
            throw std::length_error("a buffer of more than 2^63 bytes was asked for");
        }
    }
    return product;
}

Bytes::Bytes(int64_t size, bool huge_pages) : size_(size) {
    if (size <= 0) {
        size_ = 0;
        return;
    }
    if (!is_mapped(size)) {
        data_ =
            static_cast<std::byte*>(std::aligned_alloc(kAlignment, static_cast<size_t>(round_up(size, kAlignment))));
        if (!data_) throw std::bad_alloc();
        std::memset(data_, 0, static_cast<size_t>(size));
        return;
    }
#ifdef MUSESPARK_HAS_MMAP
    void* mapped = mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<std::byte*>(mapped);
#ifdef MADV_HUGEPAGE
    // Streaming weights through 4 KiB pages spends a good part of the time in page walks. A refusal does no harm.
    if (huge_pages) madvise(mapped, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
#endif
    (void)huge_pages;
}

Bytes::~Bytes() {
    if (!data_) return;
#ifdef MUSESPARK_HAS_MMAP
    if (is_mapped(size_)) {
        munmap(data_, static_cast<size_t>(size_));
        return;
    }
#endif
    std::free(data_);
}

}  // namespace musespark
