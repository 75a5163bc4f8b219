#include "feed_forward.h"

#include <stdexcept>

#include "experts.h"

namespace musespark {

std::unique_ptr<FeedForward> load_feed_forward(TensorSource& source, const TextConfig& config, bool sparse,
                                               const std::string& layer, Format format, const Machine& machine) {
    const std::string prefix = layer + config.family->feed_forward;
    if (!sparse) {
        return std::make_unique<DenseMlp>(source, config, config.intermediate_size, prefix, format, machine);
    }
    switch (config.family->experts) {
        case Experts::latent:
            return std::make_unique<LatentExperts>(source, config, prefix, format, machine);
        case Experts::scored:
            return std::make_unique<ScoredExperts>(source, config, prefix, format, machine);
        case Experts::none:
            break;
    }
    throw std::invalid_argument(std::string(config.family->model_type) + " has no experts, but a layer is sparse");
}

DenseMlp::DenseMlp(TensorSource& source, const TextConfig& config, int64_t wide, const std::string& prefix,
                   Format format, const Machine& machine) {
    const int64_t d = config.hidden_size;
    gate_up_ =
        pack({source.get(prefix + "gate_proj.weight", {wide, d}), source.get(prefix + "up_proj.weight", {wide, d})},
             format, machine.kernels, machine.pool);
    down_ = pack({source.get(prefix + "down_proj.weight", {d, wide})}, format, machine.kernels, machine.pool);
}

void DenseMlp::forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens,
                       float* out) const {
    const int64_t d = down_.out, wide_size = down_.in;
    scratch.input.shape_for(gate_up_, num_tokens);
    prepare_rows(machine, rows, num_tokens, d, scratch.input);
    float* wide = scratch.wide.reserve(num_tokens, 2 * wide_size);
    multiply(machine, gate_up_, scratch.input, num_tokens, wide, 2 * wide_size);
    scratch.wide_input.shape_for(down_, num_tokens);
    activate(machine, wide, num_tokens, wide_size, scratch.wide_input);
    multiply(machine, down_, scratch.wide_input, num_tokens, out, d);
}

void prepare_rows(const Machine& machine, const float* rows, int64_t count, int64_t width, Operand& operand) {
    for_rows(machine, count, width * 2,
             [&](int64_t index) { operand.prepare(machine.kernels, index, rows + index * width, width); });
}

void activate(const Machine& machine, float* rows, int64_t count, int64_t width, Operand& operand) {
    for_rows(machine, count, width * 8, [&](int64_t index) {
        float* row = rows + index * 2 * width;
        machine.kernels.silu_multiply(row, row + width, width, row);
        operand.prepare(machine.kernels, index, row, width);
    });
}

}  // namespace musespark
