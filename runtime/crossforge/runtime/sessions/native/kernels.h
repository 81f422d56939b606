// The steps that an encoder is made of, in several forms: plain C++, which any processor runs and tests compare with, and one for
// each kind of vector instructions.
//
// Rows are tokens. Each row's result depends on nothing but that row (attention: on its pair), whichever rows run beside it
// and however a call is cut into blocks, so a pair scores the same bit for bit in any batch.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace crossforge {

constexpr int kPanel = 64;  // columns of a weight that are stored, and computed, together
constexpr int kDepth = 4;   // rows of a weight whose products one instruction adds up

// A linear layer: out = (activation - zero point) x weight * row scale * column scale + bias.
struct Linear {
    const int8_t* panels;   // weight [in, out] as [out / 64][in / 4][64][4]
    const int32_t* start;   // [out]: (code offset - zero point) x the column's sum, what every sum starts with
    const float* scale;     // [out]
    const float* bias;      // [out]
    int inner;              // in, a multiple of 64
    int columns;            // out, a multiple of 64
};

struct Norm {
    const float* gain;      // [hidden]
    const float* offset;    // [hidden]
    const float* smoothing; // [hidden]: what the output is multiplied by before it is quantized; null for ones
    float epsilon;
};

struct Kernels {
    const char* name;
    int code_offset;  // what a product takes off each code: 128 where the instructions multiply signed numbers alone

    // out[r][0..columns) = rows of the linear layer, columns first_column .. first_column + columns (multiples of 64).
    void (*linear)(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, int first_column, int columns,
                   float* out, int out_stride);

    // The same for all columns, through GELU; largest[r] is each row's largest value.
    void (*linear_gelu)(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, float* out, int out_stride,
                        float* largest);

    // Symmetric codes of each row: round(x / scale) + 128 with scale = max |x| / 127.
    void (*quantize)(const float* in, int in_stride, int count, int width, uint8_t* out, float* scales);

    // GELU's outputs, whose zero is 24: round(x / scale) + 24 with scale = max(largest / 231, 0.17 / 24).
    void (*quantize_gelu)(const float* in, int in_stride, int count, int width, const float* largest, uint8_t* out, float* scales);

    // out = LayerNorm(in + residual), also quantized after smoothing where codes is not null. residual may be null; out may be in
    // or residual.
    void (*normalize)(const float* in, const float* residual, int count, int width, const Norm& norm, float* out, uint8_t* codes,
                      float* scales);

    // softmax(query x key^T * factor) x value of one head of one pair. Rows of query, key and value are `stride` floats apart. With
    // AVX-512 the products are of codes: 13 bits for the head's queries and keys, 10 for a column of its values, 15 for weights.
    void (*attend)(const float* query, const float* key, const float* value, int stride, int queries, int keys, int head_width,
                   float factor, float* out, int out_stride, float* scratch);
};

// Floats that `attend` wants as scratch for up to `keys` keys.
inline size_t attend_scratch(int keys, int head_width) {
    size_t padded = (static_cast<size_t>(keys) + 31) / 32 * 32;
    return padded * head_width + 24 * padded + 256;
}

// GELU as max(x, 0) - g(|x|), where g(u) = u (1 - Phi(u)) is a parabola on each of 16 parts of [0, 4.1], whose coefficients
// one permutation of a vector looks up. Within 2e-4 of the exact value, where a step of the code that it is rounded to is at least 7e-3.
constexpr float kGeluEnd = 4.1f, kGeluParts = 15.4999f / kGeluEnd;
alignas(64) constexpr float kGelu[3][16] = {
    {5.84079132e-08f, 7.20378710e-04f, 1.27320848e-02f, 5.59614934e-02f, 1.40137136e-01f, 2.51292676e-01f, 3.56110871e-01f,
     4.20041502e-01f, 4.25250798e-01f, 3.76888692e-01f, 2.96367079e-01f, 2.08760485e-01f, 1.32656902e-01f, 7.64534548e-02f,
     4.01285850e-02f, 1.92461628e-02f},
    {4.99874979e-01f, 4.90963608e-01f, 4.31784779e-01f, 3.01523119e-01f, 1.19299963e-01f, -6.83998093e-02f, -2.13576928e-01f,
     -2.88843513e-01f, -2.94661283e-01f, -2.51881897e-01f, -1.87809467e-01f, -1.24629013e-01f, -7.44734704e-02f, -4.03784923e-02f,
     -1.99678242e-02f, -9.04071517e-03f},
    {-3.96844685e-01f, -3.70532095e-01f, -2.97645926e-01f, -1.99502021e-01f, -1.00874685e-01f, -2.16338634e-02f, 2.86341030e-02f,
     5.07846698e-02f, 5.23936599e-02f, 4.29335311e-02f, 3.01875006e-02f, 1.87962335e-02f, 1.05325431e-02f, 5.36174886e-03f,
     2.49461201e-03f, 1.06516958e-03f},
};

inline float gelu(float x) {
    const float u = std::fabs(x) < kGeluEnd ? std::fabs(x) : kGeluEnd;
    const int part = static_cast<int>(std::nearbyint(u * kGeluParts));
    const float g = std::fma(std::fma(kGelu[2][part], u, kGelu[1][part]), u, kGelu[0][part]);
    return (x < 0 ? 0.0f : x) - g;
}

const Kernels& scalar_kernels();
// Null where this processor has not got the instructions, or the compiler had not.
const Kernels* amx_kernels();
const Kernels* avx512_kernels();
const Kernels* avx_vnni_kernels();
const Kernels* avx2_kernels();
const Kernels* neon_kernels();

constexpr float kGeluMinimum = -0.17f;
constexpr int kGeluZero = 24;
constexpr float kSmallestScale = 1e-12f;

}  // namespace crossforge
