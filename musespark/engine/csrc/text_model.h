// The decoder: embedding, layers over paged keys and values, head. One `forward` is one step of the engine. Source:
// musespark/model/network/text.py, glimmer.py and llama4.py, whose letters are used here: N tokens, D hidden, V
// vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "batch.h"
#include "branch.h"
#include "config.h"
#include "feed_forward.h"
#include "kv_pages.h"
#include "operand.h"
#include "self_attention.h"
#include "weights.h"

namespace musespark {

class TextModel {
public:
    // `format` is that of the text's linear maps, `head` says how keys and values are kept.
    TextModel(TensorSource& source, const TextConfig& config, Format format, const HeadPage& head, int64_t num_full_pages,
              int64_t num_sliding_pages, const Machine& machine);
    TextModel(const TextModel&) = delete;  // its parts refer to its configuration
    TextModel& operator=(const TextModel&) = delete;

    // Checks the batch, writes its K and V to the pages, and the logits (R, V) to `logits`.
    void forward(const Machine& machine, const Batch& batch, float* logits);

private:
    struct Layer {
        SelfAttention attention;
        Branch attention_branch;
        std::vector<float> feed_forward_norm;
        std::unique_ptr<FeedForward> feed_forward;
        Branch feed_forward_branch;
    };

    struct Workspace {
        Scratch<float> residual;  // (N, D)
        Scratch<float> normed;    // (N, D)
        Scratch<float> branch;    // (N, D)
        Operand head;
        SelfAttentionScratch attention;
        FeedForwardScratch feed_forward;
    };

    Layer load_layer(TensorSource& source, int64_t index, Format format, const Machine& machine) const;
    void embed(const Machine& machine, const Batch& batch);
    void head(const Machine& machine, const Batch& batch, float* logits);

    TextConfig config_;
    Tensor embedding_;  // (V, D), read row by row
    Bytes embedding_memory_;
    std::vector<Layer> layers_;
    std::vector<float> final_norm_;
    PackedMatrix lm_head_;
    PagePool pages_[2];  // full, sliding: those of local layers
    BatchChecker checker_;
    Workspace work_;
};

}  // namespace musespark
