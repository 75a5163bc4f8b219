#include "bindings_attention.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.h"
#include "isa.h"
#include "operand.h"
#include "thread_pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace musespark {
namespace {

using Cube = nb::ndarray<const float, nb::c_contig, nb::device::cpu, nb::ndim<3>>;
using OutCube = nb::ndarray<float, nb::c_contig, nb::device::cpu, nb::ndim<3>>;
using Ends = nb::ndarray<const int64_t, nb::c_contig, nb::device::cpu, nb::ndim<1>>;

class PagedAttention {
public:
    // keys and values (L, K, d)
    PagedAttention(const Cube& keys, const Cube& values, const std::string& format, int num_threads,
                   const std::string& isa)
        : pool_(num_threads),
          machine_{choose_kernels(isa), pool_},
          num_keys_(static_cast<int64_t>(keys.shape(0))),
          num_heads_(static_cast<int64_t>(keys.shape(1))),
          head_(head_page(format, static_cast<int64_t>(keys.shape(2)))),
          attention_(head_, num_threads) {
        if (values.size() != keys.size()) throw std::invalid_argument("shapes don't fit");
        pages_ = PagePool(head_, 1, num_heads_, divide_up(num_keys_, kPageTokens));
        const int64_t d = head_.head_dim;
        for (int64_t i = 0; i < num_keys_ * num_heads_; ++i) {
            const int64_t token = i / num_heads_;
            head_.put(machine_.kernels, pages_.page(token / kPageTokens) + pages_.head_offset(0, i % num_heads_),
                      token % kPageTokens, keys.data() + i * d, values.data() + i * d);
        }
    }

    // queries (T, H, d) see keys [first[t], end[t]); out (T, H, d).
    void run(const Cube& queries, const Ends& first, const Ends& end, const OutCube& out) {
        const auto num_tokens = static_cast<int64_t>(queries.shape(0)), heads = static_cast<int64_t>(queries.shape(1));
        const int64_t d = head_.head_dim, group = heads / num_heads_;
        if (heads % num_heads_ != 0 || static_cast<int64_t>(queries.shape(2)) != d || out.size() != queries.size() ||
            static_cast<int64_t>(first.shape(0)) != num_tokens || static_cast<int64_t>(end.shape(0)) != num_tokens) {
            throw std::invalid_argument("shapes don't fit");
        }
        const int64_t* low = first.data();
        const int64_t* high = end.data();
        for (int64_t i = 0; i < num_tokens; ++i) {
            const bool ascends = i == 0 || (low[i] >= low[i - 1] && high[i] >= high[i - 1]);
            if (low[i] < 0 || low[i] >= high[i] || high[i] > num_keys_ || !ascends) {
                throw std::invalid_argument("each query must see some keys, in ascending order");
            }
        }
        const int64_t bytes = head_.query_bytes();
        std::byte* rows = rows_.reserve(num_tokens * heads, bytes);
        const float scale = std::numbers::log2e_v<float> / std::sqrt(static_cast<float>(d));
        std::vector<float> scaled(static_cast<size_t>(d));
        for (int64_t i = 0; i < num_tokens * heads; ++i) {
            std::transform(queries.data() + i * d, queries.data() + (i + 1) * d, scaled.begin(),
                           [&](float x) { return x * scale; });
            head_.prepare(machine_.kernels, scaled.data(), rows + i * bytes);
        }
        const int64_t per_head = num_tokens * group, blocks = divide_up(per_head, kQueryRows);
        const auto token_of = [&](int64_t index, int64_t i) { return (index / num_heads_ * kQueryRows + i) / group; };
        const auto head_of = [&](int64_t index, int64_t i) {
            return index % num_heads_ * group + (index / num_heads_ * kQueryRows + i) % group;
        };
        int64_t longest = 0, total = 0;
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t last = std::min((block + 1) * kQueryRows, per_head) - 1;
            const int64_t length = ranges_between(low[block * kQueryRows / group], high[last / group]);
            longest = std::max(longest, length);
            total += length * num_heads_;
        }
        const auto fill = [&](int64_t index, QueryGroup& queries_of) {
            queries_of.pages = {pages_.page(0) + pages_.head_offset(0, index % num_heads_), pages_.page_bytes(), nullptr};
            queries_of.count = std::min(kQueryRows, per_head - index / num_heads_ * kQueryRows);
            for (int64_t i = 0; i < queries_of.count; ++i) {
                const int64_t token = token_of(index, i);
                queries_of.queries[i] = {rows + (token * heads + head_of(index, i)) * bytes, low[token], high[token]};
            }
        };
        const auto finish = [&](const QueryGroup&, int64_t index, int64_t i, const float* result) {
            std::copy_n(result, d, out.data() + (token_of(index, i) * heads + head_of(index, i)) * d);
        };
        attention_.run(machine_, blocks * num_heads_, longest, total, fill, finish);
    }

private:
    static HeadPage head_page(const std::string& format, int64_t head_dim) {
        if (format == "float32") return {Format::float32, head_dim};
        if (format == "bf16") return {Format::bfloat16, head_dim};
        if (format == "int8" && head_dim <= kLargestInt8Head) return {Format::int8, head_dim};
        throw std::invalid_argument("unknown format " + format);
    }

    ThreadPool pool_;
    Machine machine_;
    int64_t num_keys_, num_heads_;
    HeadPage head_;
    PagePool pages_;
    Scratch<std::byte> rows_;
    Attention attention_;
};

}  // namespace

void bind_attention(nb::module_& kernels) {
    nb::class_<PagedAttention>(kernels, "Attention")
        .def(nb::init<const Cube&, const Cube&, const std::string&, int, const std::string&>(),
             "keys"_a.noconvert(), "values"_a.noconvert(), "format"_a, "num_threads"_a, "isa"_a)
        .def(
            "run",
            [](PagedAttention& self, const Cube& queries, const Ends& first, const Ends& end, const OutCube& out) {
                const nb::gil_scoped_release release;
                self.run(queries, first, end, out);
            },
            "queries"_a.noconvert(), "first"_a.noconvert(), "end"_a.noconvert(), "out"_a.noconvert());
}

}  // namespace musespark
