// The decoder: embedding, layers over paged keys and values, head. One `forward` is one step of the engine. Source:
// muse_spark as in musespark/model/network/text.py; letters as there: N tokens, D hidden, H query heads, K kv heads, d
// head width.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention.h"
#include "batch.h"
#include "config.h"
#include "kv_pages.h"
#include "moe.h"
#include "operand.h"
#include "weights.h"

namespace musespark {

// K and V of one precision; float32 keeps them whole, the others round them to bfloat16.
HeadPage head_page(const TextConfig& config, Format format);

class TextModel {
public:
    // Format::int8 is for the text's linear maps; what reads and writes the pages is then bfloat16.
    TextModel(TensorSource& source, const TextConfig& config, Format format, int64_t num_full_pages,
              int64_t num_sliding_pages, const Machine& machine);
    TextModel(const TextModel&) = delete;  // its parts refer to its configuration
    TextModel& operator=(const TextModel&) = delete;

    // Checks the batch, writes its K and V to the pages, and the logits (R, V) to `logits`.
    void forward(const Machine& machine, const Batch& batch, float* logits);

private:
    struct Layer {
        TextLayer kind;
        int64_t index_in_group;  // among the layers of its page group
        std::vector<float> input_norm, feedforward_norm, post_feedforward_norm;
        PackedMatrix projections;  // q, k, v and gate under each other: they read the same rows
        PackedMatrix output;
        std::vector<float> attention_alpha, attention_beta, feedforward_alpha, feedforward_beta;
        std::unique_ptr<MixtureOfExperts> experts;  // one of the two
        std::unique_ptr<DenseMlp> dense;
    };

    struct Workspace {
        Scratch<float> residual;     // (N, D)
        Scratch<float> normed;       // (N, D)
        Scratch<float> branch;       // (N, D)
        Scratch<float> projected;    // (N, 2 * H * d + 2 * K * d): q, k, v, gate
        Scratch<float> rotary;       // (N, d): cosines, sines
        Scratch<std::byte> queries;  // (N, H, d) in the format of the keys
        Operand input, attended, head;
        FeedForwardScratch feedforward;
        std::vector<AttentionScratch> attention;  // one a thread
    };

    Layer load_layer(TensorSource& source, int64_t index, Format format, const Machine& machine) const;
    void embed(const Machine& machine, const Batch& batch);
    void compute_rotary(const Machine& machine, const Batch& batch);
    void attention_half(const Machine& machine, const Batch& batch, const Plan& plan, const Layer& layer);
    void write_pages(const Machine& machine, const Batch& batch, const Plan& plan, const Layer& layer);
    void attend(const Machine& machine, const Batch& batch, const Plan& plan, const Layer& layer);
    void head(const Machine& machine, const Batch& batch, float* logits);

    int64_t projected_width() const { return 2 * config_.query_width() + 2 * config_.key_width(); }

    TextConfig config_;
    Tensor embedding_;  // (V, D), read row by row
    Bytes embedding_memory_;
    std::vector<Layer> layers_;
    std::vector<float> final_norm_;
    PackedMatrix lm_head_;
    PagePool pages_[2];  // full, sliding
    BatchChecker checker_;
    Workspace work_;
};

}  // namespace musespark
