// What library.py calls through ctypes. Plain C; the structures are mirrored there field by field.
#pragma once

#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

// Weight int8 [in, out], symmetric with one scale a column.
struct crossforge_linear {
    const int8_t* weight;
    const float* scale;
    const float* bias;
    const float* smoothing;  // float [in] that the input is multiplied by before it is quantized; null for ones
};

struct crossforge_norm {
    const float* gain;
    const float* offset;
};

struct crossforge_layer {
    crossforge_linear query, key, value, attention_output, feed_forward_in, feed_forward_out;
    crossforge_norm attention_norm, feed_forward_norm;
};

struct crossforge_model {
    int32_t hidden, heads, layers, intermediate, vocabulary, positions, segments, labels;
    int32_t padding_id;  // of models that count positions from padding_id + 1 (RoBERTa's way); -1 for counting from 0
    float epsilon;
    const int8_t* words;        // [vocabulary, hidden]
    const float* word_scales;   // [vocabulary]
    const float* position_rows; // [positions, hidden]
    const float* segment_rows;  // [segments, hidden]
    crossforge_norm embedding_norm;
    const crossforge_layer* layer;      // [layers]
    const float* dense_weight;  // [hidden, hidden] as [in, out]
    const float* dense_bias;
    const float* label_weight;  // [hidden, labels]
    const float* label_bias;
};

struct crossforge_engine;

enum { CROSSFORGE_OK = 0, CROSSFORGE_BAD_ID = 1, CROSSFORGE_TOO_LONG = 2, CROSSFORGE_NO_MEMORY = 3, CROSSFORGE_BAD_MASK = 4, CROSSFORGE_EMPTY = 5 };

// Names of the kernels that this processor runs, the fastest first, "scalar" last; null for an index behind them.
const char* crossforge_kernels(int32_t index);

// Copies all weights. Null where there is no memory, or this processor does not run the kernels of that name.
crossforge_engine* crossforge_open(const crossforge_model* model, const char* kernels);

void crossforge_close(crossforge_engine* engine);

// ids, mask and segments: int64 [batch, length]; mask and segments may be null. logits: float [batch, labels].
// May be called from several threads at once.
int32_t crossforge_run(crossforge_engine* engine, const int64_t* ids, const int64_t* mask, const int64_t* segments, int64_t batch,
                       int64_t length, float* logits);

// GELU as every kernel computes it, for tests.
void crossforge_gelu(const float* in, int64_t count, float* out);

// Cycles of each stage since the engine was opened, where it was compiled with CROSSFORGE_STAGES; 0 otherwise.
void crossforge_stages(const crossforge_engine* engine, uint64_t* cycles);
}
#pragma GCC visibility pop
