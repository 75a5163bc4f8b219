#include "vision_adapter.h"

namespace musespark {

VisionAdapter::VisionAdapter(TensorSource& source, const VisionConfig& config, const VisionAdapterNames& names,
                             int64_t text_width, Format format, const Machine& machine) {
    const int64_t wide = config.projector_hidden_size;
    const auto matrix = [&](const char* name, int64_t out, int64_t in) {
        return pack({source.get(name, {out, in})}, format, machine.kernels, machine.pool);
    };
    fc1_ = matrix(names.fc1, wide, config.merged_size());
    fc2_ = matrix(names.fc2, wide, wide);
    projection_ = matrix(names.projection, text_width, wide);
}

void VisionAdapter::run(const Machine& machine, VisionScratch& scratch, int64_t num_cells, float* features) const {
    const auto product = [&](const PackedMatrix& matrix, const float* x, float* y, const Epilogue& epilogue) {
        scratch.operand.shape_for(matrix, num_cells);
        for_rows(machine, num_cells, matrix.in,
                 [&](int64_t i) { scratch.operand.prepare(machine.kernels, i, x + i * matrix.in, matrix.in); });
        multiply(machine, matrix, scratch.operand, num_cells, y, matrix.out, epilogue);
    };
    Epilogue gelu;
    gelu.gelu = true;
    float* adapted = scratch.projected.reserve(num_cells, fc1_.out);
    product(fc1_, scratch.merged.data(), adapted, gelu);
    product(fc2_, adapted, adapted, gelu);  // the rows were copied before they are written
    product(projection_, adapted, features, {});
}

}  // namespace musespark
