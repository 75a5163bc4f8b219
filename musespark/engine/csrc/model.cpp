#include "model.h"

#include <algorithm>
#include <chrono>
#include <initializer_list>
#include <stdexcept>

#include "isa.h"

namespace musespark {

namespace {

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("the configuration can't be run: ") + what);
}

// What the code relies on for its own safety; musespark/model/config.py gives the friendlier messages.
void check(const TextConfig& c) {
    const auto require_sizes = [](std::initializer_list<int64_t> sizes) {
        for (const int64_t size : sizes) {
            require(size >= 1 && size <= int64_t{1} << 31, "a size is not positive, or is above 2^31");
        }
    };
    const auto any = [&](bool TextLayer::*what) {
        return std::any_of(c.layers.begin(), c.layers.end(), [&](const TextLayer& layer) { return layer.*what; });
    };
    require_sizes({c.vocab_size, c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads,
                   c.head_dim, c.max_position_embeddings, c.floor_scale});
    if (any(&TextLayer::local)) require_sizes({c.local_span});
    if (any(&TextLayer::sparse)) {
        require_sizes({c.moe_hidden_size, c.moe_intermediate_size, c.num_local_experts, c.num_experts_per_tok});
        require(c.num_experts_per_tok <= c.num_local_experts, "more experts per token than experts");
        require(c.family->experts != Experts::none, "this family has no experts");
        require(c.family->experts != Experts::scored || c.moe_hidden_size == c.hidden_size,
                "experts of this family read the whole width");
    }
    require(!c.layers.empty(), "no layers");
    require(c.num_attention_heads % c.num_key_value_heads == 0, "query heads are not a multiple of kv heads");
    require(c.head_dim % 2 == 0, "head_dim is odd");
    require(static_cast<int64_t>(c.rotary_frequencies.size()) == c.head_dim / 2,
            "one rotary frequency per pair is needed");
}

Format text_format(Precision precision) {
    switch (precision) {
        case Precision::float32:
            return Format::float32;
        case Precision::bfloat16:
            return Format::bfloat16;
        case Precision::int8:
            return Format::int8;
        case Precision::int4:
            break;
    }
    return Format::int4;
}

HeadPage head_page(const TextConfig& text, Precision kv_precision) {
    require(kv_precision != Precision::int4, "keys and values can't be kept in int4");
    require(kv_precision != Precision::int8 || text.head_dim <= kLargestInt8Head, "heads are too wide for int8 pages");
    return {text_format(kv_precision), text.head_dim};
}

}  // namespace

Model::Model(TensorSource& source, const TextConfig& text, const std::optional<VisionConfig>& vision,
             const ModelOptions& options)
    : text_config_(text),
      vision_config_(vision),
      kernels_(choose_kernels(options.isa)),
      num_threads_(options.num_threads) {
    check(text_config_);
    // Block tables hold page ids in 32 bits.
    for (const int64_t pages : {options.num_full_pages, options.num_sliding_pages}) {
        require(pages >= 0 && pages <= INT32_MAX, "the number of pages is negative or above 2^31");
    }
    pool_ = std::make_unique<ThreadPool>(options.num_threads);
    const Format format = text_format(options.precision);
    text_ = std::make_unique<TextModel>(source, text_config_, format, head_page(text_config_, options.kv_precision),
                                        options.num_full_pages, options.num_sliding_pages, machine());
    if (vision_config_) {
        // The tower is not quantised in any published checkpoint.
        const Format vision_format = format == Format::float32 ? Format::float32 : Format::bfloat16;
        vision_ = make_tower(source, *vision_config_, text_config_.hidden_size, text_config_.rms_norm_eps,
                             vision_format, machine());
    }
    weight_bytes_ = source.held_bytes();
}

Machine Model::machine() {
    if (!pool_) throw std::logic_error("the runner is closed");
    return {kernels_, *pool_};
}

void Model::forward(const Batch& batch, float* logits) {
    const std::lock_guard lock(mutex_);
    const Machine with = machine();  // throws after close, when there is no text model either
    text_->forward(with, batch, logits);
}

std::unique_ptr<ImageEncoding> Model::start_image(const float* patches, int64_t rows, int64_t columns,
                                                  float* features) {
    const std::lock_guard lock(mutex_);
    machine();
    if (!vision_) throw std::invalid_argument("this checkpoint has no vision tower, so it takes no images");
    return vision_->start(patches, rows, columns, features);
}

bool Model::continue_image(ImageEncoding& encoding, double budget_s) {
    const std::lock_guard lock(mutex_);
    const Machine with = machine();
    if (encoding.tower != vision_.get()) throw std::invalid_argument("this image was started on another model");
    const auto start = std::chrono::steady_clock::now();
    while (encoding.num_done < encoding.num_units) {
        vision_->advance(with, encoding);
        if (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() >= budget_s) break;
    }
    return encoding.num_done == encoding.num_units;
}

void Model::close() {
    const std::lock_guard lock(mutex_);
    text_.reset();
    vision_.reset();
    pool_.reset();
}

std::pair<int64_t, int64_t> page_bytes(const TextConfig& text, Precision kv_precision) {
    check(text);
    const HeadPage head = head_page(text, kv_precision);
    return {PagePool::page_bytes(head, text.num_layers(false), text.num_key_value_heads),
            PagePool::page_bytes(head, text.num_layers(true), text.num_key_value_heads)};
}

}  // namespace musespark
