// What the text stacks of the three families do differently, and how their tensors are called; one entry each in
// text_family.cpp. Everything else they share, or the configuration says it.
#pragma once

#include <cstdint>
#include <string>

namespace musespark {

// Which channels of a head are turned together.
enum class Pairs : uint8_t { halves, neighbours };

// Where q and k are normed; after the rotation, only on layers that have one.
enum class QkNorm : uint8_t { before_rotation, after_rotation };

// What happens to the output of attention or of the feed-forward part before it joins the stream.
enum class BranchNorm : uint8_t {
    none,
    weightless,
    weighted,      // norm, then times the weight
    input_scaled,  // times the weight, then norm
};

// What a sparse layer is made of: experts.h.
enum class Experts : uint8_t { none, latent, scored };

struct TextFamily {
    const char* model_type;
    const char* prefix;             // of every tensor of the text but the head
    const char* head;               // "….weight"
    const char* feed_forward_norm;  // the norm before it; within a layer, as the next
    const char* feed_forward;

    float norm_offset;     // what is added to the stored weights of the layers' norms
    bool norms_embedding;  // to unit mean square
    QkNorm qk_norm;
    Pairs rotary_pairs;
    bool norms_attention;  // each head of its result
    bool gates_attention;  // by a sigmoid, after that
    BranchNorm attention_norm, feed_forward_branch_norm;
    bool gates_residual;  // branches join by learned gates; otherwise by plain sums
    Experts experts;
};

// The entry of a family. Throws std::invalid_argument naming the ones there are.
const TextFamily& text_family(const std::string& model_type);

}  // namespace musespark
