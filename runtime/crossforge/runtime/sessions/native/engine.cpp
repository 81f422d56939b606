// A BERT-like encoder over packed tokens: the pairs of a call stand one behind the other, without padding.
#include "engine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "kernels.h"

#ifdef CROSSFORGE_STAGES
#include <x86intrin.h>
#endif

namespace crossforge {
namespace {

#ifndef CROSSFORGE_BLOCK
#define CROSSFORGE_BLOCK 96
#endif
#ifndef CROSSFORGE_GROUP
#define CROSSFORGE_GROUP 512
#endif
constexpr int kBlock = CROSSFORGE_BLOCK;  // rows that go through a layer's steps together, so that they stay in the cache
constexpr int kGroup = CROSSFORGE_GROUP;  // tokens that go through a layer together, where pairs are short enough

enum Stage { kEmbed, kQkv, kAttend, kQuantize, kOutput, kNorm, kIn, kQuantizeGelu, kOut, kHead, kStages };

template <class T>
class Buffer {  // aligned for the widest loads
public:
    Buffer() = default;
    explicit Buffer(size_t count) { resize(count); }
    void resize(size_t count) {
        if (count <= size_) return;
        data_.reset(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64)));
        if (!data_) throw std::bad_alloc();
        size_ = count;
    }
    T* get() { return data_.get(); }
    const T* get() const { return data_.get(); }

private:
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    std::unique_ptr<T, Free> data_;
    size_t size_ = 0;
};

Buffer<float> copy(const float* from, size_t count) {
    Buffer<float> to(count);
    std::memcpy(to.get(), from, count * sizeof(float));
    return to;
}

// One or more linear layers that read the same input, side by side.
struct Packed {
    Buffer<int8_t> panels;
    Buffer<int32_t> start;
    Buffer<float> scale, bias;
    Linear view;

    // `zero` is the code of 0 in the input, less what the kernels take off a code.
    Packed(std::initializer_list<crossforge_linear> parts, int inner, int columns, int zero)
        : panels(static_cast<size_t>(inner) * columns * parts.size()),
          start(columns * parts.size()),
          scale(columns * parts.size()),
          bias(columns * parts.size()) {
        int at = 0;
        for (const auto& part : parts) {
            for (int c = 0; c < columns; ++c, ++at) {
                int8_t* panel = panels.get() + static_cast<size_t>(at / kPanel) * kPanel * inner + (at % kPanel) * kDepth;
                int32_t sum = 0;
                for (int k = 0; k < inner; ++k) {
                    const int8_t w = part.weight[static_cast<size_t>(k) * columns + c];
                    panel[static_cast<size_t>(k / kDepth) * kPanel * kDepth + k % kDepth] = w;
                    sum += w;
                }
                start.get()[at] = -zero * sum;
                scale.get()[at] = part.scale[c];
                bias.get()[at] = part.bias[c];
            }
        }
        view = Linear{panels.get(), start.get(), scale.get(), bias.get(), inner, at};
    }
};

struct Normalizer {
    Buffer<float> gain, offset, smoothing;
    Norm view;

    Normalizer(const crossforge_norm& norm, const float* smoothing_, int hidden, float epsilon)
        : gain(copy(norm.gain, hidden)), offset(copy(norm.offset, hidden)) {
        if (smoothing_) smoothing = copy(smoothing_, hidden);
        view = Norm{gain.get(), offset.get(), smoothing.get(), epsilon};
    }
};

struct Layer {
    Packed query_key_value, attention_output, feed_forward_in, feed_forward_out;
    Normalizer attention_norm, feed_forward_norm;  // each smooths what the next linear layer reads
};

struct Workspace {
    Buffer<float> hidden, projected, mixed, wide, narrow, scratch, scales, largest;
    Buffer<uint8_t> codes, wide_codes;
    Buffer<float> queries, query_scales;  // of the last layer, one row a pair
    Buffer<uint8_t> query_codes;
    std::vector<int> begins;  // of each pair, and the end
};

}  // namespace
}  // namespace crossforge

using namespace crossforge;

struct crossforge_engine {
    crossforge_model m;
    const Kernels& kernels;
    Buffer<int8_t> words;
    Buffer<float> word_scales, position_rows, segment_rows, dense_weight, dense_bias, label_weight, label_bias;
    std::unique_ptr<Normalizer> embedding_norm;
    std::vector<Layer> layers;
    Buffer<float> last_smoothing;  // of the last layer's query, which reads the first row of each pair alone
    bool last_is_smoothed = false;
    std::mutex lock;
    std::vector<std::unique_ptr<Workspace>> idle;
    uint64_t cycles[kStages] = {};

    crossforge_engine(const crossforge_model& model, const Kernels& chosen) : m(model), kernels(chosen) {
        const int h = m.hidden;
        words.resize(static_cast<size_t>(m.vocabulary) * h);
        std::memcpy(words.get(), m.words, static_cast<size_t>(m.vocabulary) * h);
        word_scales = copy(m.word_scales, m.vocabulary);
        position_rows = copy(m.position_rows, static_cast<size_t>(m.positions) * h);
        segment_rows = copy(m.segment_rows, static_cast<size_t>(m.segments) * h);
        dense_weight = copy(m.dense_weight, static_cast<size_t>(h) * h);
        dense_bias = copy(m.dense_bias, h);
        label_weight = copy(m.label_weight, static_cast<size_t>(h) * m.labels);
        label_bias = copy(m.label_bias, m.labels);
        const int centre = 128 - kernels.code_offset, gelu_zero = kGeluZero - kernels.code_offset;
        embedding_norm.reset(new Normalizer(m.embedding_norm, m.layer[0].key.smoothing, h, m.epsilon));
        for (int i = 0; i < m.layers; ++i) {
            const auto& l = m.layer[i];
            const float* next = i + 1 < m.layers ? m.layer[i + 1].key.smoothing : nullptr;
            layers.push_back(Layer{Packed({l.query, l.key, l.value}, h, h, centre), Packed({l.attention_output}, h, h, centre),
                                   Packed({l.feed_forward_in}, h, m.intermediate, centre),
                                   Packed({l.feed_forward_out}, m.intermediate, h, gelu_zero),
                                   Normalizer(l.attention_norm, l.feed_forward_in.smoothing, h, m.epsilon),
                                   Normalizer(l.feed_forward_norm, next, h, m.epsilon)});
        }
        if (const float* s = m.layer[m.layers - 1].query.smoothing) {
            last_smoothing = copy(s, h);
            last_is_smoothed = true;
        }
    }

    std::unique_ptr<Workspace> take() {
        std::lock_guard<std::mutex> guard(lock);
        if (idle.empty()) return std::unique_ptr<Workspace>(new Workspace());
        auto space = std::move(idle.back());
        idle.pop_back();
        return space;
    }

    void give(std::unique_ptr<Workspace> space) {
        std::lock_guard<std::mutex> guard(lock);
        idle.push_back(std::move(space));
    }
};

namespace crossforge {
namespace {

class Run {
public:
    Run(crossforge_engine& engine, Workspace& space)
        : e_(engine), k_(engine.kernels), w_(space), h_(engine.m.hidden), wide_(engine.m.intermediate) {
#ifdef CROSSFORGE_STAGES
        last_ = __rdtsc();
#endif
    }

    // Pairs first .. last of the batch, packed.
    int group(const int64_t* ids, const int64_t* segments, const std::vector<int>& lengths, int first, int last, int64_t stride,
              float* logits) {
        const int pairs = last - first;
        w_.begins.assign(1, 0);
        int longest = 0;
        for (int i = first; i < last; ++i) {
            w_.begins.push_back(w_.begins.back() + lengths[i]);
            longest = std::max(longest, lengths[i]);
        }
        const int tokens = w_.begins.back();
        reserve(tokens, pairs, longest);
        for (int i = first; i < last; ++i)
            if (int error = embed(ids + i * stride, segments ? segments + i * stride : nullptr, lengths[i], w_.begins[i - first]))
                return error;
        k_.normalize(hidden(0), nullptr, tokens, h_, e_.embedding_norm->view, hidden(0), codes(0), w_.scales.get());
        mark(kEmbed);
        for (size_t i = 0; i + 1 < e_.layers.size(); ++i) {
            const Layer& layer = e_.layers[i];
            for (int column = 0; column < h_; column += kPanel) {
                for (int part = 0; part < 3; ++part) project(layer, part, column, tokens);
                mark(kQkv);
                attend(pairs, column, false);
                mark(kAttend);
            }
            finish(layer, tokens, true);
        }
        last_layer(pairs, tokens);
        for (int i = 0; i < pairs; ++i) head(hidden(i), logits + static_cast<size_t>(first + i) * e_.m.labels);
        mark(kHead);
        return CROSSFORGE_OK;
    }

private:
    float* hidden(int row) { return w_.hidden.get() + static_cast<size_t>(row) * h_; }
    float* query(int pair) { return w_.queries.get() + static_cast<size_t>(pair) * h_; }
    uint8_t* codes(int row) { return w_.codes.get() + static_cast<size_t>(row) * h_; }

    void mark(Stage stage) {
#ifdef CROSSFORGE_STAGES
        const uint64_t now = __rdtsc();
        e_.cycles[stage] += now - last_;
        last_ = now;
#else
        (void)stage;
#endif
    }

    void reserve(int tokens, int pairs, int longest) {
        const size_t rows = static_cast<size_t>(tokens) + pairs, block = std::min<size_t>(kBlock, rows);
        w_.hidden.resize(rows * h_);
        w_.codes.resize(rows * h_);
        w_.projected.resize(rows * 3 * kPanel);
        w_.mixed.resize(rows * h_);
        w_.scales.resize(rows);
        w_.queries.resize(static_cast<size_t>(pairs) * h_);
        w_.query_codes.resize(static_cast<size_t>(pairs) * h_);
        w_.query_scales.resize(pairs);
        w_.narrow.resize(block * h_);
        w_.wide.resize(block * wide_);
        w_.wide_codes.resize(block * wide_);
        w_.largest.resize(block);
        w_.scratch.resize(attend_scratch(longest, h_ / e_.m.heads));
    }

    int embed(const int64_t* ids, const int64_t* segments, int length, int row) {
        const auto& m = e_.m;
        int64_t position = m.padding_id + 1;
        for (int t = 0; t < length; ++t, ++row) {
            const int64_t id = ids[t], segment = segments ? segments[t] : 0;
            if (id < 0 || id >= m.vocabulary || segment < 0 || segment >= m.segments) return CROSSFORGE_BAD_ID;
            const bool is_padding = m.padding_id >= 0 && id == m.padding_id;  // takes no position of its own
            const int64_t at = is_padding ? m.padding_id : position++;
            if (at >= m.positions) return CROSSFORGE_TOO_LONG;
            const int8_t* word = e_.words.get() + id * h_;
            const float scale = e_.word_scales.get()[id];
            const float *p = e_.position_rows.get() + at * h_, *s = e_.segment_rows.get() + segment * h_;
            float* out = hidden(row);
            for (int c = 0; c < h_; ++c) out[c] = word[c] * scale + s[c] + p[c];
        }
        return CROSSFORGE_OK;
    }

    // A panel of the queries (part 0), keys (1) or values (2) of every token. A panel goes through attention before the next is
    // computed, so that it is still in the cache.
    void project(const Layer& layer, int part, int column, int tokens) {
        k_.linear(codes(0), w_.scales.get(), tokens, layer.query_key_value.view, part * h_ + column, kPanel,
                  w_.projected.get() + part * kPanel, 3 * kPanel);
    }

    // The heads of a panel, of every pair. With one_query, only the first row of each pair asks, and row i of `mixed` is pair i's.
    void attend(int pairs, int column, bool one_query) {
        const int width = h_ / e_.m.heads, stride = 3 * kPanel;
        const float factor = 1.0f / std::sqrt(static_cast<float>(width));
        for (int i = 0; i < pairs; ++i) {
            const int begin = w_.begins[i], keys = w_.begins[i + 1] - begin;
            const float* rows = w_.projected.get() + static_cast<size_t>(begin) * stride;
            for (int at = 0; at < kPanel; at += width) {
                const float* asking = one_query ? query(i) + column + at : rows + at;
                float* out = w_.mixed.get() + static_cast<size_t>(one_query ? i : begin) * h_ + column + at;
                k_.attend(asking, rows + kPanel + at, rows + 2 * kPanel + at, stride, one_query ? 1 : keys, keys, width, factor, out, h_,
                          w_.scratch.get());
            }
        }
    }

    // From the attention's mixture to the layer's output, block by block.
    void finish(const Layer& layer, int rows, bool quantize) {
        for (int r = 0; r < rows; r += kBlock) {
            const int count = std::min(kBlock, rows - r);
            float* scales = w_.scales.get() + r;
            k_.quantize(w_.mixed.get() + static_cast<size_t>(r) * h_, h_, count, h_, codes(r), scales);
            mark(kQuantize);
            k_.linear(codes(r), scales, count, layer.attention_output.view, 0, h_, w_.narrow.get(), h_);
            mark(kOutput);
            k_.normalize(w_.narrow.get(), hidden(r), count, h_, layer.attention_norm.view, hidden(r), codes(r), scales);
            mark(kNorm);
            k_.linear_gelu(codes(r), scales, count, layer.feed_forward_in.view, w_.wide.get(), wide_, w_.largest.get());
            mark(kIn);
            k_.quantize_gelu(w_.wide.get(), wide_, count, wide_, w_.largest.get(), w_.wide_codes.get(), scales);
            mark(kQuantizeGelu);
            k_.linear(w_.wide_codes.get(), scales, count, layer.feed_forward_out.view, 0, h_, w_.narrow.get(), h_);
            mark(kOut);
            k_.normalize(w_.narrow.get(), hidden(r), count, h_, layer.feed_forward_norm.view, hidden(r), quantize ? codes(r) : nullptr,
                         scales);
            mark(kNorm);
        }
    }

    // The head reads the first row of each pair: keys and values are needed of all rows, everything else of that one.
    void last_layer(int pairs, int tokens) {
        const Layer& layer = e_.layers.back();
        for (int i = 0; i < pairs; ++i) {
            float* smoothed = query(i);
            const float *first = hidden(w_.begins[i]), *s = e_.last_smoothing.get();
            for (int c = 0; c < h_; ++c) smoothed[c] = first[c] * (e_.last_is_smoothed ? s[c] : 1.0f);
        }
        k_.quantize(query(0), h_, pairs, h_, w_.query_codes.get(), w_.query_scales.get());
        k_.linear(w_.query_codes.get(), w_.query_scales.get(), pairs, layer.query_key_value.view, 0, h_, query(0), h_);
        mark(kQkv);
        for (int column = 0; column < h_; column += kPanel) {
            for (int part = 1; part < 3; ++part) project(layer, part, column, tokens);
            mark(kQkv);
            attend(pairs, column, true);
            mark(kAttend);
        }
        // Begins grow at least as fast as i: no row is overwritten before it is read.
        for (int i = 0; i < pairs; ++i) std::memmove(hidden(i), hidden(w_.begins[i]), h_ * sizeof(float));
        finish(layer, pairs, false);
    }

    void head(const float* first, float* logits) {
        float* pooled = w_.narrow.get();
        std::memcpy(pooled, e_.dense_bias.get(), h_ * sizeof(float));
        for (int k = 0; k < h_; ++k)
            for (int c = 0; c < h_; ++c) pooled[c] += first[k] * e_.dense_weight.get()[static_cast<size_t>(k) * h_ + c];
        std::memcpy(logits, e_.label_bias.get(), e_.m.labels * sizeof(float));
        for (int k = 0; k < h_; ++k) {
            const float x = std::tanh(pooled[k]);
            for (int c = 0; c < e_.m.labels; ++c) logits[c] += x * e_.label_weight.get()[static_cast<size_t>(k) * e_.m.labels + c];
        }
    }

    crossforge_engine& e_;
    const Kernels& k_;
    Workspace& w_;
    const int h_, wide_;
    uint64_t last_ = 0;
};

// The fastest first; null where this processor does not run them.
std::array<const Kernels*, 6> all_kernels() {
    return {amx_kernels(), avx512_kernels(), avx_vnni_kernels(), avx2_kernels(), neon_kernels(), &scalar_kernels()};
}

}  // namespace
}  // namespace crossforge

const char* crossforge_kernels(int32_t index) {
    for (const Kernels* kernels : all_kernels())
        if (kernels && index-- == 0) return kernels->name;
    return nullptr;
}

crossforge_engine* crossforge_open(const crossforge_model* model, const char* name) {
    const Kernels* chosen = nullptr;
    for (const Kernels* kernels : all_kernels())
        if (kernels && std::strcmp(kernels->name, name) == 0) chosen = kernels;
    if (!chosen) return nullptr;
    try {
        return new crossforge_engine(*model, *chosen);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void crossforge_close(crossforge_engine* engine) { delete engine; }

int32_t crossforge_run(crossforge_engine* engine, const int64_t* ids, const int64_t* mask, const int64_t* segments, int64_t batch,
                       int64_t length, float* logits) {
    try {
        std::vector<int> lengths(batch, static_cast<int>(length));
        for (int64_t i = 0; mask && i < batch; ++i) {
            const int64_t* row = mask + i * length;
            int count = 0;
            while (count < length && row[count] == 1) ++count;
            for (int64_t t = count; t < length; ++t)
                if (row[t] != 0) return CROSSFORGE_BAD_MASK;
            lengths[i] = count;
        }
        if (std::any_of(lengths.begin(), lengths.end(), [](int n) { return n == 0; })) return CROSSFORGE_EMPTY;
        auto space = engine->take();
        int error = CROSSFORGE_OK;
        for (int first = 0; first < batch && !error;) {
            int last = first + 1, tokens = lengths[first];
            while (last < batch && tokens + lengths[last] <= kGroup) tokens += lengths[last++];
            error = Run(*engine, *space).group(ids, segments, lengths, first, last, length, logits);
            first = last;
        }
        engine->give(std::move(space));
        return error;
    } catch (const std::bad_alloc&) {
        return CROSSFORGE_NO_MEMORY;
    }
}

void crossforge_gelu(const float* in, int64_t count, float* out) { std::transform(in, in + count, out, gelu); }

void crossforge_stages(const crossforge_engine* engine, uint64_t* cycles) { std::copy_n(engine->cycles, int(kStages), cycles); }
