#include "weights.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace musespark {

namespace {

std::string text(const std::vector<int64_t>& shape) {
    std::string result = "[";
    for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
    return result + "]";
}

float from_float16(uint16_t half) {
    const int sign = half >> 15, exponent = half >> 10 & 31, fraction = half & 1023;
    float value;
    if (exponent == 31) {
        value = fraction ? NAN : INFINITY;
    } else if (exponent == 0) {
        value = std::ldexp(static_cast<float>(fraction), -24);
    } else {
        value = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    }
    return sign ? -value : value;
}

float from_bfloat16(uint16_t half) { return std::bit_cast<float>(static_cast<uint32_t>(half) << 16); }

// `n` floats of a float type, from element `start` on.
void read_floats(const void* data, Tensor::Type type, int64_t start, int64_t n, float* out) {
    if (type == Tensor::Type::float32) {
        std::memcpy(out, static_cast<const float*>(data) + start, static_cast<size_t>(n) * sizeof(float));
        return;
    }
    const auto* halves = static_cast<const uint16_t*>(data) + start;
    if (type == Tensor::Type::bfloat16) {
        for (int64_t k = 0; k < n; ++k) out[k] = from_bfloat16(halves[k]);
    } else {
        for (int64_t k = 0; k < n; ++k) out[k] = from_float16(halves[k]);
    }
}

int64_t num_rows(const Tensor& tensor) {
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows = checked_product({rows, tensor.shape[i]});
    return rows;
}

}  // namespace

void Tensor::read_row(int64_t row, float* out) const {
    const int64_t n = width();
    if (!is_integer()) {
        read_floats(data, type, row * n, n, out);
        return;
    }
    std::vector<int8_t> values(static_cast<size_t>(n));
    std::vector<float> row_scales(static_cast<size_t>(n / group_size));
    read_integers(row, values.data());
    read_scales(row, row_scales.data());
    for (int64_t k = 0; k < n; ++k) {
        out[k] = static_cast<float>(values[static_cast<size_t>(k)]) * row_scales[static_cast<size_t>(k / group_size)];
    }
}

void Tensor::read_integers(int64_t row, int8_t* out) const {
    const int64_t n = width();
    if (type == Type::int8) {
        std::memcpy(out, static_cast<const int8_t*>(data) + row * n, static_cast<size_t>(n));
        return;
    }
    const auto* bytes = static_cast<const uint8_t*>(data) + row * divide_up(n, 8) * 4;
    for (int64_t k = 0; k < n; ++k) out[k] = static_cast<int8_t>((bytes[k / 2] >> (k % 2 * 4) & 15) - 8);
}

void Tensor::read_scales(int64_t row, float* out) const {
    const int64_t num_groups = width() / group_size;
    read_floats(scales, scales_type, row * num_groups, num_groups, out);
}

Tensor TensorSource::get(const std::string& name, const std::vector<int64_t>& shape) {
    Tensor tensor = fetch(name);
    if (tensor.shape != shape) {
        throw std::invalid_argument(name + " has shape " + text(tensor.shape) + ", but config.json asks for " +
                                    text(shape));
    }
    tensor.held_bytes = &held_bytes_;
    return tensor;
}

Bytes keep(Tensor& tensor) {
    if (tensor.is_integer()) throw std::invalid_argument(tensor.name + " must be in floats");
    const int64_t element = tensor.type == Tensor::Type::float32 ? 4 : 2;
    Bytes memory(checked_product({num_rows(tensor), tensor.width(), element}));
    std::memcpy(memory.data(), tensor.data, static_cast<size_t>(memory.size()));
    if (tensor.held_bytes) *tensor.held_bytes += memory.size();
    tensor.data = memory.data();
    tensor.owner.reset();
    return memory;
}

std::vector<float> read_vector(const Tensor& tensor, float offset) {
    const int64_t rows = num_rows(tensor), n = tensor.width();
    std::vector<float> values(static_cast<size_t>(checked_product({rows, n})));
    for (int64_t row = 0; row < rows; ++row) tensor.read_row(row, values.data() + row * n);
    for (float& value : values) value += offset;
    if (tensor.held_bytes) *tensor.held_bytes += static_cast<int64_t>(values.size() * sizeof(float));
    return values;
}

}  // namespace musespark
