// The Python module musespark.engine._native. Arrays come in as they are, never converted or copied; NativeRunner
// (native.py) is what the rest of the project uses.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "bindings_kernels.h"
#include "bindings_vision.h"
#include "isa.h"
#include "model.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace musespark {
namespace {

template <class T, class... Shape>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu, Shape...>;
template <class T>
using Vector = Array<T, nb::ndim<1>>;
template <class T>
using Table = Array<T, nb::ndim<2>>;

template <class T>
int64_t extent(const T& array, size_t axis) {
    return static_cast<int64_t>(array.shape(axis));
}

void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

// A view of what Python holds. Never of a converted copy, which would be gone before the weights are packed.
template <class A>
A view(const nb::handle& object, const std::string& name) {
    A array;
    require(nb::try_cast(object, array, false), name + " is not a contiguous array of the type that its dtype says");
    return array;
}

// `fetch(name)` in native.py gives (dtype, array, scales or None, group size). The lock of the interpreter is held here
// only, so that Python can answer while weights are packed.
class PythonSource : public TensorSource {
public:
    explicit PythonSource(nb::callable fetch) : fetch_(std::move(fetch)) {}

protected:
    Tensor fetch(const std::string& name) override {
        const nb::gil_scoped_acquire lock;
        const std::shared_ptr<nb::tuple> fetched(new nb::tuple(nb::cast<nb::tuple>(fetch_(name))), [](nb::tuple* owner) {
            const nb::gil_scoped_acquire owner_lock;
            delete owner;
        });
        const auto dtype = nb::cast<std::string>((*fetched)[0]);
        const auto array = view<nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>>((*fetched)[1], name);
        Tensor tensor;
        tensor.name = name;
        tensor.data = array.data();
        tensor.owner = fetched;
        for (size_t i = 0; i < array.ndim(); ++i) tensor.shape.push_back(extent(array, i));
        require(!tensor.shape.empty() && array.size() > 0, name + " is empty");
        if (dtype == "F32" && array.dtype() == nb::dtype<float>()) {
            tensor.type = Tensor::Type::float32;
        } else if (dtype == "F16" && array.dtype() == nb::dtype<uint16_t>()) {
            tensor.type = Tensor::Type::float16;
        } else if (dtype == "BF16" && array.dtype() == nb::dtype<uint16_t>()) {
            tensor.type = Tensor::Type::bfloat16;
        } else if (dtype == "I8" && array.dtype() == nb::dtype<int8_t>()) {
            tensor.type = Tensor::Type::int8;
            add_scales(tensor, *fetched);
        } else if (dtype == "I4" && array.dtype() == nb::dtype<uint8_t>()) {
            tensor.type = Tensor::Type::int4;
            add_scales(tensor, *fetched);
        } else {
            throw std::invalid_argument(name + " has the type " + dtype + ", which can't be loaded");
        }
        if (!tensor.is_integer()) {
            tensor.group_size = nb::cast<int64_t>((*fetched)[3]);
            require_group(tensor, tensor.group_size == 0);
        }
        return tensor;
    }

private:
    // A dot product of at most 2^15 products of 255 * 127 fits in 32 bits.
    static void require_group(const Tensor& tensor, bool or_none = false) {
        const int64_t group = tensor.group_size;
        require((group >= 4 && group % 4 == 0 && group <= 1 << 15) || or_none,
                tensor.name + " has groups of " + std::to_string(group) +
                    " inputs; they must be a multiple of 4, up to 32768");
    }

    static void add_scales(Tensor& tensor, const nb::tuple& fetched) {
        const auto scales = view<nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>>(
            fetched[2], "the scale of " + tensor.name);
        const bool is_wide = scales.dtype() == nb::dtype<float>();
        require(is_wide || scales.dtype() == nb::dtype<uint16_t>(),
                "the scale of " + tensor.name + " is neither float32 nor the bits of bfloat16");
        tensor.scales = scales.data();
        tensor.scales_type = is_wide ? Tensor::Type::float32 : Tensor::Type::bfloat16;
        tensor.group_size = nb::cast<int64_t>(fetched[3]);
        require_group(tensor);
        std::vector<int64_t> found;
        for (size_t i = 0; i < scales.ndim(); ++i) found.push_back(extent(scales, i));
        require(!found.empty() && found.back() >= 1, tensor.name + " has no scales");
        if (tensor.type == Tensor::Type::int4) {
            // The scales tell how many inputs a row of words holds.
            require(found.back() <= INT64_MAX >> 16, tensor.name + " has scales of another shape");
            const int64_t width = found.back() * tensor.group_size;
            require(tensor.shape.back() == divide_up(width, 8) * 4, tensor.name + " has scales of another shape");
            tensor.shape.back() = width;
        }
        std::vector<int64_t> expected = tensor.shape;
        require(expected.back() % tensor.group_size == 0, tensor.name + " has a last group that is not full");
        expected.back() /= tensor.group_size;
        require(found == expected, tensor.name + " has scales of another shape");
    }

    nb::callable fetch_;
};

Precision precision_of(const std::string& name) {
    if (name == "float32") return Precision::float32;
    if (name == "bf16") return Precision::bfloat16;
    if (name == "int8") return Precision::int8;
    if (name == "int4") return Precision::int4;
    throw std::invalid_argument("precision is '" + name + "'; it must be float32, bf16, int8 or int4");
}

TextConfig text_config(const nb::dict& d) {
    const auto size = [&](const char* name) { return nb::cast<int64_t>(d[name]); };
    const auto number = [&](const char* name) { return nb::cast<float>(d[name]); };
    const auto flag = [&](const char* name) { return nb::cast<bool>(d[name]); };
    TextConfig c;
    c.family = &text_family(nb::cast<std::string>(d["model_type"]));
    c.vocab_size = size("vocab_size");
    c.hidden_size = size("hidden_size");
    c.intermediate_size = size("intermediate_size");
    c.num_attention_heads = size("num_attention_heads");
    c.num_key_value_heads = size("num_key_value_heads");
    c.head_dim = size("head_dim");
    c.max_position_embeddings = size("max_position_embeddings");
    c.local_span = size("local_span");
    c.moe_hidden_size = size("moe_hidden_size");
    c.moe_intermediate_size = size("moe_intermediate_size");
    c.num_local_experts = size("num_local_experts");
    c.num_experts_per_tok = size("num_experts_per_tok");
    c.floor_scale = size("floor_scale");
    c.rms_norm_eps = number("rms_norm_eps");
    c.post_norm_eps = number("post_norm_eps");
    c.final_logit_softcapping = number("final_logit_softcapping");
    c.qk_scale_factor = number("qk_scale_factor");
    c.output_multiplier = number("output_multiplier");
    c.routed_scaling_factor = number("routed_scaling_factor");
    c.residual_gate_temperature = number("residual_gate_temperature");
    c.attn_scale = number("attn_scale");
    c.chunked = flag("chunked");
    c.use_qk_norm = flag("use_qk_norm");
    c.attn_temperature_tuning = flag("attn_temperature_tuning");
    c.rotary_frequencies = nb::cast<std::vector<float>>(d["rotary_frequencies"]);
    const auto local = nb::cast<std::vector<bool>>(d["local"]);
    const auto sparse = nb::cast<std::vector<bool>>(d["sparse"]);
    const auto rope = nb::cast<std::vector<bool>>(d["rope"]);
    require(local.size() == sparse.size() && local.size() == rope.size(), "the lists of layers differ in length");
    for (size_t i = 0; i < local.size(); ++i) c.layers.push_back({local[i], sparse[i], rope[i]});
    return c;
}

void construct(Model* self, const nb::dict& text, const nb::object& vision, nb::callable fetch,
               const std::string& precision, const std::string& kv_precision, int64_t num_full_pages,
               int64_t num_sliding_pages, int num_threads, const std::string& isa) {
    PythonSource source(std::move(fetch));
    std::optional<VisionConfig> with_vision;
    if (!vision.is_none()) with_vision = vision_config(nb::cast<nb::dict>(vision));
    const TextConfig with_text = text_config(text);
    const ModelOptions options = {
        precision_of(precision), precision_of(kv_precision), num_full_pages, num_sliding_pages, num_threads, isa};
    const nb::gil_scoped_release release;
    new (self) Model(source, with_text, with_vision, options);
}

void forward(Model& self, const Vector<const int32_t>& token_ids, const Vector<const int64_t>& positions,
             const Vector<const int32_t>& query_start, const Table<const int32_t>& full_block_table,
             const Table<const int32_t>& sliding_block_table, const Vector<const int32_t>& embed_rows,
             const Table<const float>& embeds, const Vector<const int32_t>& logit_rows, const Table<float>& logits) {
    Batch batch = {};
    batch.num_tokens = extent(token_ids, 0);
    batch.num_sequences = extent(query_start, 0) - 1;
    batch.full_columns = extent(full_block_table, 1);
    batch.sliding_columns = extent(sliding_block_table, 1);
    batch.num_embeds = extent(embed_rows, 0);
    batch.num_logits = extent(logit_rows, 0);
    require(batch.num_tokens <= INT32_MAX, "a batch takes at most 2^31 - 1 tokens");
    require(extent(positions, 0) == batch.num_tokens, "positions must have one entry for each token id");
    require(batch.num_sequences >= 0, "query_start must have at least one entry");
    require(extent(full_block_table, 0) == batch.num_sequences && extent(sliding_block_table, 0) == batch.num_sequences,
            "the block tables must have one row for each sequence");
    require(
        extent(embeds, 0) == batch.num_embeds && (extent(embeds, 1) == self.text().hidden_size || !batch.num_embeds),
        "embeds must be (len(embed_rows), hidden_size)");
    require(extent(logits, 0) == batch.num_logits && extent(logits, 1) == self.text().vocab_size,
            "logits must be (len(logit_rows), vocab_size)");
    batch.token_ids = token_ids.data();
    batch.positions = positions.data();
    batch.query_start = query_start.data();
    batch.full_block_table = full_block_table.data();
    batch.sliding_block_table = sliding_block_table.data();
    batch.embed_rows = embed_rows.data();
    batch.embeds = embeds.data();
    batch.logit_rows = logit_rows.data();
    const nb::gil_scoped_release release;
    self.forward(batch, logits.data());
}

// An image on its way, and the arrays that it reads and writes.
struct StartedImage {
    std::unique_ptr<ImageEncoding> encoding;
    Table<const float> patches;
    Table<float> features;
};

StartedImage start_image(Model& self, const Table<const float>& patches, int64_t rows, int64_t columns,
                         const Table<float>& features) {
    require(self.vision().has_value(), "this checkpoint has no vision tower, so it takes no images");
    const int64_t merged = self.vision()->merge_size * self.vision()->merge_size;
    require(rows >= 1 && columns >= 1 && rows <= INT32_MAX && columns <= INT32_MAX &&
                extent(patches, 0) == rows * columns && extent(patches, 1) == self.vision()->frame_size(),
            "patches must be (rows * columns, 3 * patch_size^2)");
    require(extent(features, 0) == rows * columns / merged && extent(features, 1) == self.text().hidden_size,
            "features must be (number of merged patches, hidden_size)");
    StartedImage image = {nullptr, patches, features};
    const nb::gil_scoped_release release;
    image.encoding = self.start_image(patches.data(), rows, columns, features.data());
    return image;
}

bool continue_image(Model& self, StartedImage& image, double budget_s) {
    const nb::gil_scoped_release release;
    return self.continue_image(*image.encoding, budget_s);
}

nb::dict build_info() {
    nb::dict info;
#ifdef __clang__
    info["compiler"] = "clang " __clang_version__;
#else
    info["compiler"] = "gcc " __VERSION__;
#endif
    info["isas"] = nb::cast(available_isas());
    info["page_tokens"] = kPageTokens;
    info["max_threads"] = ThreadPool::kMaxThreads;
    return info;
}

}  // namespace
}  // namespace musespark

NB_MODULE(_native, m) {
    using namespace musespark;
    m.doc() = "The native CPU runner of Muse Spark; used through musespark.engine.native.";
    m.def("build_info", &build_info);
    m.def(
        "page_bytes",
        [](const nb::dict& text, const std::string& kv_precision) {
            return page_bytes(text_config(text), precision_of(kv_precision));
        },
        "text"_a, "kv_precision"_a);
    nb::class_<StartedImage>(m, "StartedImage").def_prop_ro("progress", [](const StartedImage& image) {
        return static_cast<double>(image.encoding->num_done.load()) / static_cast<double>(image.encoding->num_units);
    });
    nb::class_<Model>(m, "Model")
        .def("__init__", &construct, "text"_a, "vision"_a.none(), "fetch"_a, "precision"_a, "kv_precision"_a,
             "num_full_pages"_a, "num_sliding_pages"_a, "num_threads"_a, "isa"_a)
        // noconvert: a wrong type is an error of the caller, not a reason for a silent copy.
        .def("forward", &forward, "token_ids"_a.noconvert(), "positions"_a.noconvert(), "query_start"_a.noconvert(),
             "full_block_table"_a.noconvert(), "sliding_block_table"_a.noconvert(), "embed_rows"_a.noconvert(),
             "embeds"_a.noconvert(), "logit_rows"_a.noconvert(), "logits"_a.noconvert())
        .def("start_image", &start_image, "patches"_a.noconvert(), "rows"_a, "columns"_a, "features"_a.noconvert())
        .def("continue_image", &continue_image, "image"_a, "budget_s"_a)
        .def("close",
             [](Model& self) {
                 const nb::gil_scoped_release release;
                 self.close();
             })
        .def_prop_ro("isa", &Model::isa)
        .def_prop_ro("weight_bytes", &Model::weight_bytes)
        .def_prop_ro("num_threads", &Model::num_threads);
    bind_kernels(m);
}
