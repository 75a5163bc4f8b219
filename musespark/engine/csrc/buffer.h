// Owned, aligned memory for weights, KV pages and scratch rows. Sizes are counted in 64 bits and checked for overflow
// here, once, so that the rest of the code can multiply dimensions without thinking about it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>

namespace musespark {

// The product of dimensions, none negative; throws std::length_error if it does not fit in 63 bits.
int64_t checked_product(std::initializer_list<int64_t> dimensions);

// Round up to a multiple; `multiple` > 0.
constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Zeroed bytes, 64-byte aligned. Large blocks come straight from the system, so untouched pages cost no memory: a KV
// pool grows with use. Throws std::bad_alloc.
class Bytes {
public:
    Bytes() = default;
    explicit Bytes(int64_t size, bool huge_pages = false);
    ~Bytes();
    Bytes(Bytes&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Bytes& operator=(Bytes&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }

    std::byte* data() const { return data_; }
    int64_t size() const { return size_; }

private:
    std::byte* data_ = nullptr;
    int64_t size_ = 0;
};

// A grow-only array for scratch rows: `reserve` keeps the memory of the largest step so far, so a step in the steady
// state allocates nothing. It is zeroed whenever it grows.
template <class T>
class Scratch {
public:
    T* reserve(int64_t rows, int64_t columns) {
        const int64_t bytes = checked_product({rows, columns, static_cast<int64_t>(sizeof(T))});
        if (bytes > memory_.size()) memory_ = Bytes(bytes + bytes / 4, true);
        return data();
    }
    T* data() const { return reinterpret_cast<T*>(memory_.data()); }

private:
    Bytes memory_;
};

}  // namespace musespark
