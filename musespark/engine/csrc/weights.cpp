#include "weights.h"

#include <algorithm>
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

// The rows of several tensors, one under the other, cut into matrices of `out` rows.
struct Stack {
    const std::vector<Tensor>& tensors;
    std::vector<int64_t> first_row;  // of each tensor, and the number of all rows at the end

    explicit Stack(const std::vector<Tensor>& stacked) : tensors(stacked), first_row{0} {
        for (const Tensor& tensor : tensors) {
            int64_t rows = 1;
            for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows = checked_product({rows, tensor.shape[i]});
            first_row.push_back(first_row.back() + rows);
        }
    }

    const Tensor& find(int64_t& row) const {
        size_t i = 0;
        while (row >= first_row[i + 1]) ++i;
        row -= first_row[i];
        return tensors[i];
    }
};

// Where input k of output lane o lies in a panel of floats or of bfloat16.
void put_float(float* panel, int64_t lane, const float* row, int64_t n) {
    for (int64_t k = 0; k < n; ++k) panel[k * kPanel + lane] = row[k];
}

void put_bfloat16(uint16_t* panel, int64_t lane, const uint16_t* row, int64_t n) {
    for (int64_t k = 0; k < n; ++k) panel[(k / 2 * kPanel + lane) * 2 + k % 2] = row[k];
}

// A row of int8 values with their scales into its lane of a panel.
void put_int8(std::byte* panel, int64_t lane, const int8_t* row, const float* scales, int64_t n, int64_t depth,
              int64_t group_size, uint8_t flip) {
    for (int64_t start = 0; start < depth; start += group_size) {
        for (int64_t k = 0; k < group_size; ++k) {
            const auto value = static_cast<uint8_t>(start + k < n ? row[start + k] : 0);
            panel[(k / 4 * kPanel + lane) * 4 + k % 4] = static_cast<std::byte>(value ^ flip);
        }
        panel += group_size * kPanel;
        std::memcpy(panel + lane * sizeof(float), &scales[start / group_size], sizeof(float));
        panel += kPanel * sizeof(float);
    }
}

// Round to nearest, symmetric, one scale for each group.
void quantize_row(const float* row, int64_t n, int64_t group_size, int8_t* values, float* scales) {
    for (int64_t start = 0; start < n; start += group_size) {
        const int64_t end = std::min(n, start + group_size);
        float largest = 0.0F;
        bool finite = true;
        for (int64_t k = start; k < end; ++k) {
            largest = std::max(largest, std::abs(row[k]));
            finite = finite && std::isfinite(row[k]);
        }
        // A broken weight must not turn into a healthy one: the whole group becomes NaN.
        const float scale = finite ? largest / 127.0F : NAN;
        scales[start / group_size] = scale;
        for (int64_t k = start; k < end; ++k) {
            const float value = scale > 0.0F ? std::nearbyint(row[k] / scale) : 0.0F;
            values[k] = static_cast<int8_t>(std::clamp(value, -127.0F, 127.0F));
        }
    }
}

// What one thread needs to pack a row.
struct RowBuffers {
    std::vector<float> floats;
    std::vector<uint16_t> halves;
    std::vector<int8_t> values;
    std::vector<float> scales;

    RowBuffers(int64_t depth, int64_t num_groups)
        : floats(static_cast<size_t>(depth)),
          halves(static_cast<size_t>(depth)),
          values(static_cast<size_t>(depth)),
          scales(static_cast<size_t>(num_groups)) {}
};

int64_t common_group_size(const std::vector<Tensor>& stacked) {
    int64_t group_size = 0;
    for (const Tensor& tensor : stacked) {
        if (tensor.type != Tensor::Type::int8) continue;
        if (group_size != 0 && tensor.group_size != group_size) {
            throw std::invalid_argument(tensor.name + " has groups of " + std::to_string(tensor.group_size) +
                                        " inputs, " + stacked[0].name + " of " + std::to_string(group_size) +
                                        "; they must be equal");
        }
        group_size = tensor.group_size;
    }
    return group_size != 0 ? group_size : kDefaultGroup;
}

}  // namespace

void Tensor::read_row(int64_t row, float* out) const {
    const int64_t n = shape.back();
    const int64_t start = row * n;
    switch (type) {
        case Type::float32:
            std::memcpy(out, static_cast<const float*>(data) + start, static_cast<size_t>(n) * sizeof(float));
            break;
        case Type::float16:
            for (int64_t k = 0; k < n; ++k) out[k] = from_float16(static_cast<const uint16_t*>(data)[start + k]);
            break;
        case Type::bfloat16:
            for (int64_t k = 0; k < n; ++k) {
                out[k] =
                    std::bit_cast<float>(static_cast<uint32_t>(static_cast<const uint16_t*>(data)[start + k]) << 16);
            }
            break;
        case Type::int8: {
            const float* row_scales = scales + row * (n / group_size);
            for (int64_t k = 0; k < n; ++k) {
                out[k] = static_cast<float>(static_cast<const int8_t*>(data)[start + k]) * row_scales[k / group_size];
            }
            break;
        }
    }
}

Tensor TensorSource::get(const std::string& name, const std::vector<int64_t>& shape) {
    Tensor tensor = get(name);
    if (tensor.shape != shape) {
        throw std::invalid_argument(name + " has shape " + text(tensor.shape) + ", but config.json asks for " +
                                    text(shape));
    }
    return tensor;
}

int64_t panel_bytes(Format format, int64_t depth, int64_t group_size) {
    switch (format) {
        case Format::float32:
            return checked_product({depth, kPanel, sizeof(float)});
        case Format::bfloat16:
            return checked_product({depth, kPanel, sizeof(uint16_t)});
        case Format::int8:
            break;
    }
    return checked_product({depth / group_size, group_size * kPanel + kPanel * static_cast<int64_t>(sizeof(float))});
}

PackedMatrix pack(const std::vector<Tensor>& stacked, Format format, const Kernels& kernels, ThreadPool& pool) {
    const Stack stack(stacked);
    PackedMatrix packed;
    packed.format = format;
    packed.num_matrices = stacked[0].shape.size() == 3 ? stacked[0].shape[0] : 1;
    packed.out = stack.first_row.back() / packed.num_matrices;
    packed.in = stacked[0].shape.back();
    packed.group_size = format == Format::int8 ? common_group_size(stacked) : 1;
    // bfloat16 inputs go in pairs, int8 ones in whole groups.
    packed.depth = round_up(packed.in, format == Format::float32    ? 1
                                       : format == Format::bfloat16 ? 2
                                                                    : packed.group_size);
    packed.num_panels = divide_up(packed.out, kPanel);
    packed.panel_bytes = panel_bytes(format, packed.depth, packed.group_size);
    const int64_t num_panels = checked_product({packed.num_matrices, packed.num_panels});
    packed.panels = Bytes(checked_product({num_panels, packed.panel_bytes}), true);

    std::vector<RowBuffers> buffers(static_cast<size_t>(pool.num_threads()),
                                    RowBuffers(packed.depth, packed.depth / packed.group_size));
    pool.run(num_panels, [&](int64_t index, int thread) {
        RowBuffers& buffer = buffers[static_cast<size_t>(thread)];
        std::byte* panel = packed.panels.data() + index * packed.panel_bytes;
        const int64_t first = index % packed.num_panels * kPanel;
        for (int64_t lane = 0; lane < std::min(kPanel, packed.out - first); ++lane) {
            int64_t row = index / packed.num_panels * packed.out + first + lane;
            const Tensor& tensor = stack.find(row);
            if (format == Format::int8 && tensor.type == Tensor::Type::int8) {
                put_int8(panel, lane, static_cast<const int8_t*>(tensor.data) + row * packed.in,
                         tensor.scales + row * (packed.in / packed.group_size), packed.in, packed.depth,
                         packed.group_size, kernels.int8_weight_xor);
                continue;
            }
            tensor.read_row(row, buffer.floats.data());
            if (format == Format::float32) {
                put_float(reinterpret_cast<float*>(panel), lane, buffer.floats.data(), packed.in);
            } else if (format == Format::bfloat16) {
                kernels.to_bfloat16(buffer.floats.data(), packed.in, buffer.halves.data(), packed.depth);
                put_bfloat16(reinterpret_cast<uint16_t*>(panel), lane, buffer.halves.data(), packed.depth);
            } else {
                quantize_row(buffer.floats.data(), packed.in, packed.group_size, buffer.values.data(),
                             buffer.scales.data());
                put_int8(panel, lane, buffer.values.data(), buffer.scales.data(), packed.in, packed.depth,
                         packed.group_size, kernels.int8_weight_xor);
            }
        }
    });
    return packed;
}

std::vector<float> read_vector(const Tensor& tensor, float offset) {
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows = checked_product({rows, tensor.shape[i]});
    const int64_t n = tensor.shape.back();
    std::vector<float> values(static_cast<size_t>(checked_product({rows, n})));
    for (int64_t row = 0; row < rows; ++row) tensor.read_row(row, values.data() + row * n);
    for (float& value : values) value += offset;
    return values;
}

}  // namespace musespark
