// How tensors become panels. The layouts are those of kernels.h.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "weights.h"

namespace musespark {

namespace {

// Most inputs of a row that share a scale: rows are rounded while the model runs, and a group of weights may be a whole
// row, in which one large input would leave nothing of the others.
constexpr int64_t kLargestRowGroup = 64;
constexpr int64_t kSmallestRowGroup = 16;  // below this, scaling costs more than the products
constexpr int64_t kRowGroupStep = 8;       // suits int8 and int4

bool is_integer(Format format) { return format == Format::int8 || format == Format::int4; }

// Inputs in a step of a panel: what `depth`, or each group of integers, is a multiple of.
int64_t inputs_per_step(Format format) {
    switch (format) {
        case Format::float32:
            return 1;
        case Format::bfloat16:
            return 2;
        case Format::int8:
            return 4;
        case Format::int4:
            break;
    }
    return 8;
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

int64_t common_group_size(const std::vector<Tensor>& stacked) {
    int64_t group_size = 0, wanted = kDefaultGroup;
    for (const Tensor& tensor : stacked) {
        if (!tensor.is_integer()) {
            if (tensor.group_size != 0) wanted = tensor.group_size;
            continue;
        }
        if (group_size != 0 && tensor.group_size != group_size) {
            throw std::invalid_argument(tensor.name + " has groups of " + std::to_string(tensor.group_size) +
                                        " inputs, " + stacked[0].name + " of " + std::to_string(group_size) +
                                        "; they must be equal");
        }
        group_size = tensor.group_size;
    }
    return group_size != 0 ? group_size : wanted;
}

// The format that can hold all of the tensors where `wanted` is asked for.
Format format_of(const std::vector<Tensor>& stacked, Format wanted) {
    if (!is_integer(wanted)) return wanted;
    const auto any = [&](const auto& holds) { return std::any_of(stacked.begin(), stacked.end(), holds); };
    if (any([](const Tensor& tensor) { return !tensor.is_integer() && tensor.group_size == 0; })) {
        return Format::bfloat16;
    }
    const bool has_bytes = any([](const Tensor& tensor) { return tensor.type == Tensor::Type::int8; });
    const bool has_odd_groups = common_group_size(stacked) % inputs_per_step(Format::int4) != 0;
    return wanted == Format::int4 && (has_bytes || has_odd_groups) ? Format::int8 : wanted;
}

// The largest divisor of `group_size` that suits rows, else the whole group.
int64_t row_group_size(int64_t group_size) {
    for (int64_t size = kLargestRowGroup; size >= kSmallestRowGroup; size -= kRowGroupStep) {
        if (group_size % size == 0) return size;
    }
    return group_size;
}

int64_t panel_bytes(const PackedMatrix& packed) {
    switch (packed.format) {
        case Format::float32:
            return checked_product({packed.depth, kPanel, sizeof(float)});
        case Format::bfloat16:
            return checked_product({packed.depth, kPanel, sizeof(uint16_t)});
        case Format::int8:
        case Format::int4:
            break;
    }
    const int64_t steps = packed.depth / inputs_per_step(packed.format);
    const int64_t scale_bytes = packed.wide_scales ? sizeof(float) : sizeof(uint16_t);
    const int64_t scales_bytes = checked_product({packed.depth / packed.group_size, kPanel, scale_bytes});
    return round_up(checked_product({steps, kStepBytes}) + scales_bytes, 64);  // so that vectors stay in one line
}

// Round to nearest, symmetric, one bfloat16 scale for each group, against which the values are rounded: as
// musespark/model/quantize.py does.
void quantize_row(const float* row, int64_t n, int64_t group_size, float most, const Kernels& kernels, int8_t* values,
                  float* scales) {
    for (int64_t start = 0; start < n; start += group_size) {
        const int64_t end = std::min(n, start + group_size);
        float largest = 0.0F;
        bool finite = true;
        for (int64_t k = start; k < end; ++k) {
            largest = std::max(largest, std::abs(row[k]));
            finite = finite && std::isfinite(row[k]);
        }
        // A broken weight must not turn into a healthy one: the whole group becomes NaN.
        const float exact = finite ? largest / most : NAN;
        uint16_t half;
        kernels.to_bfloat16(&exact, 1, &half, 1);
        const float scale = std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
        scales[start / group_size] = scale;
        for (int64_t k = start; k < end; ++k) {
            const float value = scale > 0.0F ? std::nearbyint(row[k] / scale) : 0.0F;
            values[k] = static_cast<int8_t>(std::clamp(value, -most, most));
        }
    }
}

void put_float32(std::byte* panel, int64_t lane, const float* row, int64_t n) {
    for (int64_t k = 0; k < n; ++k) reinterpret_cast<float*>(panel)[k * kPanel + lane] = row[k];
}

void put_bfloat16(std::byte* panel, int64_t lane, const uint16_t* row, int64_t depth) {
    for (int64_t k = 0; k < depth; k += 2) std::memcpy(panel + k / 2 * kStepBytes + lane * 4, row + k, 4);
}

void put_int8(std::byte* panel, int64_t lane, const int8_t* row, int64_t depth, uint8_t flip) {
    for (int64_t k = 0; k < depth; k += 4) {
        uint32_t word;
        std::memcpy(&word, row + k, sizeof word);
        word ^= flip * 0x01010101U;
        std::memcpy(panel + k / 4 * kStepBytes + lane * 4, &word, sizeof word);
    }
}

void put_int4(std::byte* panel, int64_t lane, const int8_t* row, int64_t depth) {
    for (int64_t k = 0; k < depth; k += 8) {
        std::byte* step = panel + k / 8 * kStepBytes + lane * 4;
        for (int64_t i = 0; i < 4; ++i) {
            step[i] = static_cast<std::byte>((row[k + i] + 8) | (row[k + i + 4] + 8) << 4);
        }
    }
}

// The same of a row as it is stored, 32 bits at a time: the halves of eight inputs, told apart and laid crosswise.
void put_words(std::byte* panel, int64_t lane, const uint8_t* words, int64_t depth) {
    const auto spread = [](uint32_t x) {
        x = (x | x << 8) & 0x00FF00FFU;
        return (x | x << 4) & 0x0F0F0F0FU;
    };
    for (int64_t step = 0; step < depth / 8; ++step) {
        uint32_t word = 0;
        for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(words[step * 4 + i]) << 8 * i;
        const uint32_t crossed = spread(word & 0xFFFF) | spread(word >> 16) << 4;
        for (int i = 0; i < 4; ++i) {
            panel[step * kStepBytes + lane * 4 + i] = static_cast<std::byte>(crossed >> 8 * i);
        }
    }
}

void put_scales(const PackedMatrix& packed, std::byte* panel, int64_t lane, const float* scales) {
    std::byte* place = panel + packed.depth / inputs_per_step(packed.format) * kStepBytes;
    for (int64_t group = 0; group < packed.depth / packed.group_size; ++group) {
        const int64_t index = group * kPanel + lane;
        if (packed.wide_scales) {
            std::memcpy(place + index * 4, &scales[group], sizeof(float));
        } else {
            const auto half = static_cast<uint16_t>(std::bit_cast<uint32_t>(scales[group]) >> 16);  // exact: it is one
            std::memcpy(place + index * 2, &half, sizeof half);
        }
    }
}

// Packs single rows; each thread has one, for the memory between.
class RowPacker {
public:
    RowPacker(const PackedMatrix& packed, const Kernels& kernels)
        : packed_(packed),
          kernels_(kernels),
          floats_(static_cast<size_t>(packed.depth)),
          halves_(static_cast<size_t>(packed.depth)),
          values_(static_cast<size_t>(packed.depth)),
          scales_(static_cast<size_t>(packed.depth / packed.group_size)) {}

    // Row `row` of the tensor into its lane of a panel. What lies beyond its inputs stays zero in all buffers.
    void put(const Tensor& tensor, int64_t row, std::byte* panel, int64_t lane) {
        switch (packed_.format) {
            case Format::float32:
                tensor.read_row(row, floats_.data());
                put_float32(panel, lane, floats_.data(), packed_.in);
                return;
            case Format::bfloat16:
                tensor.read_row(row, floats_.data());
                kernels_.to_bfloat16(floats_.data(), packed_.in, halves_.data(), packed_.depth);
                put_bfloat16(panel, lane, halves_.data(), packed_.depth);
                return;
            case Format::int8:
                read(tensor, row, 127.0F);
                put_int8(panel, lane, values_.data(), packed_.depth, kernels_.int8_weight_xor);
                break;
            case Format::int4:
                if (tensor.type == Tensor::Type::int4) {
                    tensor.read_scales(row, scales_.data());
                    const int64_t row_bytes = packed_.in / 2;  // whole groups of whole words
                    put_words(panel, lane, static_cast<const uint8_t*>(tensor.data) + row * row_bytes, packed_.in);
                } else {
                    read(tensor, row, 7.0F);
                    put_int4(panel, lane, values_.data(), packed_.depth);
                }
                break;
        }
        put_scales(packed_, panel, lane, scales_.data());
    }

private:
    // Integers and scales of a row, its own or rounded to at most `most`.
    void read(const Tensor& tensor, int64_t row, float most) {
        if (tensor.is_integer()) {
            tensor.read_integers(row, values_.data());
            tensor.read_scales(row, scales_.data());
        } else {
            tensor.read_row(row, floats_.data());
            quantize_row(floats_.data(), packed_.in, packed_.group_size, most, kernels_, values_.data(), scales_.data());
        }
    }

    const PackedMatrix& packed_;
    const Kernels& kernels_;
    std::vector<float> floats_;
    std::vector<uint16_t> halves_;
    std::vector<int8_t> values_;
    std::vector<float> scales_;
};

}  // namespace

PackedMatrix pack(const std::vector<Tensor>& stacked, Format format, const Kernels& kernels, ThreadPool& pool) {
    const Stack stack(stacked);
    PackedMatrix packed;
    packed.format = format_of(stacked, format);
    packed.num_matrices = stacked[0].shape.size() == 3 ? stacked[0].shape[0] : 1;
    packed.out = stack.first_row.back() / packed.num_matrices;
    packed.in = stacked[0].width();
    const int64_t step = inputs_per_step(packed.format);
    if (is_integer(packed.format)) {
        packed.group_size = common_group_size(stacked);
        packed.row_group_size = row_group_size(packed.group_size);
        for (const Tensor& tensor : stacked) {
            packed.wide_scales |= tensor.is_integer() && tensor.scales_type == Tensor::Type::float32;
        }
    }
    packed.depth = round_up(packed.in, is_integer(packed.format) ? packed.group_size : step);
    packed.num_panels = divide_up(packed.out, kPanel);
    packed.panel_bytes = panel_bytes(packed);
    const int64_t num_panels = checked_product({packed.num_matrices, packed.num_panels});
    packed.panels = Bytes(checked_product({num_panels, packed.panel_bytes}), true);
    if (stacked[0].held_bytes) *stacked[0].held_bytes += packed.panels.size();

    std::vector<RowPacker> packers(static_cast<size_t>(pool.num_threads()), RowPacker(packed, kernels));
    pool.run(num_panels, [&](int64_t index, int thread) {
        std::byte* panel = packed.panels.data() + index * packed.panel_bytes;
        const int64_t first = index % packed.num_panels * kPanel;
        for (int64_t lane = 0; lane < std::min(kPanel, packed.out - first); ++lane) {
            int64_t row = index / packed.num_panels * packed.out + first + lane;
            const Tensor& tensor = stack.find(row);
            packers[static_cast<size_t>(thread)].put(tensor, row, panel, lane);
        }
    });
    return packed;
}

}  // namespace musespark
