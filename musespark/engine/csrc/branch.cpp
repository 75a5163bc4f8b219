#include "branch.h"

#include <algorithm>
#include <cmath>

namespace musespark {

Branch::Branch(TensorSource& source, const TextConfig& config, BranchNorm norm, const std::string& prefix)
    : norm_(norm), width_(config.hidden_size), eps_(config.post_norm_eps) {
    const auto vector = [&](const char* name, float offset) {
        return read_vector(source.get(prefix + name, {width_}), offset);
    };
    if (norm == BranchNorm::weighted || norm == BranchNorm::input_scaled) {
        weight_ = vector("layernorm.weight", config.family->norm_offset);
    }
    if (!config.family->gates_residual) return;
    // beta = sigmoid(gate / temperature), alpha = sqrt(1 - beta^2), written so that it keeps its digits near beta = 1,
    // and clamped as in training.
    for (const float gate : vector("residual_gate.gate", 0.0F)) {
        const float w = gate / config.residual_gate_temperature;
        beta_.push_back(1.0F / (1.0F + std::exp(-w)));
        alpha_.push_back(std::sqrt(std::max((1.0F + beta_.back()) / (1.0F + std::exp(w)), 1e-3F)));
    }
}

void Branch::join(const Kernels& kernels, float* residual, float* row) const {
    switch (norm_) {
        case BranchNorm::none:
            break;
        case BranchNorm::weightless:
            kernels.rms_norm(row, nullptr, width_, eps_, row);
            break;
        case BranchNorm::weighted:
            kernels.rms_norm(row, weight_.data(), width_, eps_, row);
            break;
        case BranchNorm::input_scaled:
            kernels.input_scaled_norm(row, weight_.data(), width_, eps_, row);
            break;
    }
    if (alpha_.empty()) {
        kernels.add(residual, row, width_);
    } else {
        kernels.residual_gate(residual, alpha_.data(), beta_.data(), row, width_);
    }
}

}  // namespace musespark
