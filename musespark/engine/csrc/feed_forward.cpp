#include "feed_forward.h"

#include <stdexcept>

#include "experts.h"

namespace musespark {

std::unique_ptr<FeedForward> load_feed_forward(TensorSource& source, const TextConfig& config, bool sparse,
                                               const std::string& layer, Format format, const Machine& machine) {
    const std::string prefix = layer + config.family->feed_forward;
    if (!sparse) {
        return std::make_unique<DenseMlp>(source, config, prefix, format, machine);
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

SwigluStack load_dense(TensorSource& source, const TextConfig& config, int64_t wide, const std::string& prefix,
                       Format format, const Machine& machine) {
    const int64_t d = config.hidden_size;
    return {
        pack({source.get(prefix + "gate_proj.weight", {wide, d}), source.get(prefix + "up_proj.weight", {wide, d})},
             format, machine.kernels, machine.pool),
        pack({source.get(prefix + "down_proj.weight", {d, wide})}, format, machine.kernels, machine.pool),
    };
}

DenseMlp::DenseMlp(TensorSource& source, const TextConfig& config, const std::string& prefix, Format format,
                   const Machine& machine)
    : mlp_(load_dense(source, config, config.intermediate_size, prefix, format, machine)) {}

void DenseMlp::forward(const Machine& machine, FeedForwardScratch& scratch, const float* rows, int64_t num_tokens,
                       float* out) const {
    const int64_t d = mlp_.down.out;
    scratch.dense.begin(mlp_, num_tokens, num_tokens);
    for_rows(machine, num_tokens, d * 2,
             [&](int64_t token) { scratch.dense.prepare(machine.kernels, token, rows + token * d); });
    const int64_t all[] = {0, num_tokens};
    SwigluRows::forward(machine, scratch.products, {{scratch.dense, all, nullptr, out}});
}

void prepare_rows(const Machine& machine, const float* rows, int64_t count, int64_t width, Operand& operand) {
    for_rows(machine, count, width * 2,
             [&](int64_t index) { operand.prepare(machine.kernels, index, rows + index * width, width); });
}

}  // namespace musespark
