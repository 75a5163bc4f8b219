// The native runner: text and image network, thread pool and kernels behind one lock. Everything that Python calls is
// here.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "batch.h"
#include "config.h"
#include "text_model.h"
#include "vision_config.h"
#include "vision_tower.h"

namespace musespark {

enum class Precision { float32, bfloat16, int8, int4 };

struct ModelOptions {
    Precision precision;
    Precision kv_precision;  // of keys and values: any but int4
    int64_t num_full_pages, num_sliding_pages;
    int num_threads;
    std::string isa;  // "" for the best
};

class Model {
public:
    // Reads every tensor from `source`. Throws std::invalid_argument for options or tensors that don't fit.
    Model(TensorSource& source, const TextConfig& text, const std::optional<VisionConfig>& vision,
          const ModelOptions& options);

    // These may be called from any thread, one call at a time runs; the others wait. Throw std::invalid_argument for bad
    // input, and std::logic_error after `close`.
    void forward(const Batch& batch, float* logits);
    std::unique_ptr<ImageEncoding> start_image(const float* patches, int64_t rows, int64_t columns, float* features);
    // Works on an image for about `budget_s` seconds, one unit at least. Returns whether it is done.
    bool continue_image(ImageEncoding& encoding, double budget_s);

    // Waits for a call that runs, then frees the memory.
    void close();

    const TextConfig& text() const { return text_config_; }
    const std::optional<VisionConfig>& vision() const { return vision_config_; }
    const char* isa() const { return kernels_.isa; }
    int num_threads() const { return num_threads_; }
    int64_t weight_bytes() const { return weight_bytes_; }  // of all weights in memory

private:
    Machine machine();

    TextConfig text_config_;
    std::optional<VisionConfig> vision_config_;
    const Kernels& kernels_;
    int num_threads_;
    int64_t weight_bytes_ = 0;
    std::mutex mutex_;
    std::unique_ptr<ThreadPool> pool_;  // null after close
    std::unique_ptr<TextModel> text_;
    std::unique_ptr<ImageTower> vision_;
};

// Bytes of a page of each group, full and sliding.
std::pair<int64_t, int64_t> page_bytes(const TextConfig& text, Precision kv_precision);

}  // namespace musespark
