// The steps with AVX-512 and its VNNI instructions. Compiled with flags of its own; entered only where the processor has them.
#include "kernels.h"

#if defined(__x86_64__) && defined(__AVX512F__) && defined(__AVX512VNNI__)

#include <immintrin.h>

#include <cmath>
#include <cstring>

#define INLINE static inline __attribute__((always_inline))

namespace crossforge {
namespace {

constexpr int kRows = 6;    // a tile of 6 rows x 4 registers: 24 sums, 4 weights and 1 activation fill the 32 registers
constexpr int kWide = 4;    // registers of 16 columns

struct Plain {
    static constexpr bool kGelu = false;
};
struct Gelu {
    static constexpr bool kGelu = true;
};

// As in kernels.h, sixteen at a time.
INLINE __m512 gelu(__m512 x) {
    const __m512 u = _mm512_min_ps(_mm512_abs_ps(x), _mm512_set1_ps(kGeluEnd));
    // Adding 2^23 leaves the nearest integer in the lowest bits, and a permutation reads the lowest four.
    const __m512i part = _mm512_castps_si512(_mm512_fmadd_ps(u, _mm512_set1_ps(kGeluParts), _mm512_set1_ps(8388608.0f)));
    __m512 g = _mm512_permutexvar_ps(part, _mm512_load_ps(kGelu[2]));
    g = _mm512_fmadd_ps(g, u, _mm512_permutexvar_ps(part, _mm512_load_ps(kGelu[1])));
    g = _mm512_fmadd_ps(g, u, _mm512_permutexvar_ps(part, _mm512_load_ps(kGelu[0])));
    return _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), x), g);
}

// sums[r][0..64) = rows x panel. The sums leave the registers at once: whatever else is done to them, no compiler then keeps
// them in memory inside the loop, which would halve its speed.
template <int R>
INLINE void multiply(const uint8_t* rows, const int8_t* panel, const int32_t* start, int inner, int32_t* sums) {
    __m512i sum[R][kWide];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int w = 0; w < kWide; ++w) sum[r][w] = _mm512_loadu_si512(start + 16 * w);
    for (int k = 0; k < inner; k += kDepth) {
        __m512i weights[kWide];
#pragma GCC unroll 4
        for (int w = 0; w < kWide; ++w) weights[w] = _mm512_load_si512(panel + 64 * w);
        panel += kPanel * kDepth;
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            int32_t four;
            std::memcpy(&four, rows + static_cast<size_t>(r) * inner + k, sizeof four);
            const __m512i activation = _mm512_set1_epi32(four);
#pragma GCC unroll 4
            for (int w = 0; w < kWide; ++w) sum[r][w] = _mm512_dpbusd_epi32(sum[r][w], activation, weights[w]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int w = 0; w < kWide; ++w) _mm512_store_si512(sums + kPanel * r + 16 * w, sum[r][w]);
}

template <int R, class Kind>
INLINE void tile(const uint8_t* rows, const float* row_scales, const int8_t* panel, const Linear& layer, int column, float* out,
                 int out_stride, float* largest) {
    alignas(64) int32_t sums[R * kPanel];
    multiply<R>(rows, panel, layer.start + column, layer.inner, sums);
    __m512 scale[kWide], bias[kWide];
#pragma GCC unroll 4
    for (int w = 0; w < kWide; ++w) {
        scale[w] = _mm512_loadu_ps(layer.scale + column + 16 * w);
        bias[w] = _mm512_loadu_ps(layer.bias + column + 16 * w);
    }
#pragma GCC unroll 1
    for (int r = 0; r < R; ++r) {
        const __m512 row_scale = _mm512_set1_ps(row_scales[r]);
        __m512 x[kWide];
#pragma GCC unroll 4
        for (int w = 0; w < kWide; ++w) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + kPanel * r + 16 * w));
            x[w] = _mm512_fmadd_ps(sum, _mm512_mul_ps(row_scale, scale[w]), bias[w]);
            if (Kind::kGelu) x[w] = gelu(x[w]);
            _mm512_storeu_ps(out + static_cast<size_t>(r) * out_stride + 16 * w, x[w]);
        }
        if (Kind::kGelu) {
            __m512 most = _mm512_max_ps(_mm512_max_ps(x[0], x[1]), _mm512_max_ps(x[2], x[3]));
            if (column) most = _mm512_max_ps(most, _mm512_load_ps(largest + 16 * r));
            _mm512_store_ps(largest + 16 * r, most);
        }
    }
}

template <class Kind>
void product(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, int first_column, int columns, float* out,
             int out_stride, float* largest) {
    for (int c = 0; c < columns; c += kPanel) {
        const int column = first_column + c;
        const int8_t* panel = layer.panels + static_cast<size_t>(column) * layer.inner;
        for (int r = 0; r < count; r += kRows) {
            const uint8_t* a = rows + static_cast<size_t>(r) * layer.inner;
            const float* s = row_scales + r;
            float* o = out + static_cast<size_t>(r) * out_stride + c;
            float* m = largest + 16 * r;
            switch (count - r) {
                case 1: tile<1, Kind>(a, s, panel, layer, column, o, out_stride, m); break;
                case 2: tile<2, Kind>(a, s, panel, layer, column, o, out_stride, m); break;
                case 3: tile<3, Kind>(a, s, panel, layer, column, o, out_stride, m); break;
                case 4: tile<4, Kind>(a, s, panel, layer, column, o, out_stride, m); break;
                case 5: tile<5, Kind>(a, s, panel, layer, column, o, out_stride, m); break;
                default: tile<6, Kind>(a, s, panel, layer, column, o, out_stride, m);
            }
        }
    }
}

void linear(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, int first_column, int columns, float* out,
            int out_stride) {
    product<Plain>(rows, row_scales, count, layer, first_column, columns, out, out_stride, nullptr);
}

void linear_gelu(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, float* out, int out_stride,
                 float* largest) {
    constexpr int kBlock = 96;
    alignas(64) float lanes[kBlock * 16];
    for (int r = 0; r < count; r += kBlock) {
        const int block = count - r < kBlock ? count - r : kBlock;
        product<Gelu>(rows + static_cast<size_t>(r) * layer.inner, row_scales + r, block, layer, 0, layer.columns,
                      out + static_cast<size_t>(r) * out_stride, out_stride, lanes);
        for (int i = 0; i < block; ++i) largest[r + i] = _mm512_reduce_max_ps(_mm512_load_ps(lanes + 16 * i));
    }
}

INLINE void store_codes(uint8_t* out, __m512 x, __m512 inverse, __m512i zero) {
    const __m512i code = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)), zero);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtusepi32_epi8(_mm512_max_epi32(code, _mm512_setzero_si512())));
}

INLINE void quantize_row(const float* in, int width, uint8_t* out, float* scale, __m512 most) {
    *scale = _mm512_reduce_max_ps(most) * (1.0f / 127);
    if (!(*scale > kSmallestScale)) *scale = kSmallestScale;
    const __m512 inverse = _mm512_set1_ps(1.0f / *scale);
    const __m512i zero = _mm512_set1_epi32(128);
    for (int c = 0; c < width; c += 16) store_codes(out + c, _mm512_loadu_ps(in + c), inverse, zero);
}

void quantize(const float* in, int in_stride, int count, int width, uint8_t* out, float* scales) {
    for (int r = 0; r < count; ++r) {
        const float* row = in + static_cast<size_t>(r) * in_stride;
        __m512 most = _mm512_setzero_ps();
        for (int c = 0; c < width; c += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(row + c)));
        quantize_row(row, width, out + static_cast<size_t>(r) * width, scales + r, most);
    }
}

void quantize_gelu(const float* in, int in_stride, int count, int width, const float* largest, uint8_t* out, float* scales) {
    for (int r = 0; r < count; ++r) {
        const float wanted = largest[r] * (1.0f / (255 - kGeluZero)), smallest = -kGeluMinimum / kGeluZero;
        scales[r] = wanted > smallest ? wanted : smallest;
        const __m512 inverse = _mm512_set1_ps(1.0f / scales[r]);
        const __m512i zero = _mm512_set1_epi32(kGeluZero);
        for (int c = 0; c < width; c += 16)
            store_codes(out + static_cast<size_t>(r) * width + c, _mm512_loadu_ps(in + static_cast<size_t>(r) * in_stride + c), inverse,
                        zero);
    }
}

void normalize(const float* in, const float* residual, int count, int width, const Norm& norm, float* out, uint8_t* codes,
               float* scales) {
    alignas(64) float smoothed[4096];
    for (int r = 0; r < count; ++r) {
        const size_t at = static_cast<size_t>(r) * width;
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        for (int c = 0; c < width; c += 16) {
            __m512 x = _mm512_loadu_ps(in + at + c);
            if (residual) x = _mm512_add_ps(x, _mm512_loadu_ps(residual + at + c));
            _mm512_storeu_ps(out + at + c, x);
            sum = _mm512_add_ps(sum, x);
        }
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
        for (int c = 0; c < width; c += 16) {
            const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(out + at + c), mean);
            squares = _mm512_fmadd_ps(x, x, squares);
        }
        const __m512 inverse = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + norm.epsilon));
        __m512 most = _mm512_setzero_ps();
        for (int c = 0; c < width; c += 16) {
            __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(out + at + c), mean), inverse);
            x = _mm512_fmadd_ps(x, _mm512_loadu_ps(norm.gain + c), _mm512_loadu_ps(norm.offset + c));
            _mm512_storeu_ps(out + at + c, x);
            if (norm.smoothing) x = _mm512_mul_ps(x, _mm512_loadu_ps(norm.smoothing + c));
            _mm512_store_ps(smoothed + c, x);
            most = _mm512_max_ps(most, _mm512_abs_ps(x));
        }
        if (codes) quantize_row(smoothed, width, codes + at, scales + r, most);
    }
}

// 2^x for x <= 0: a polynomial on [-1/2, 1/2], within 3e-7 relatively.
INLINE __m512 exp2_of(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.33335581e-3f);
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(9.61812911e-3f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(5.55041087e-2f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(2.40226507e-1f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(6.93147181e-1f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}

INLINE void transpose_16x16(__m512 (&x)[16]) {
    __m512 y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            const __m512d low = _mm512_castps_pd(y[i + j]), high = _mm512_castps_pd(y[i + j + 2]);
            x[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            x[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    for (int j = 0; j < 4; ++j) {
        y[j] = _mm512_shuffle_f32x4(x[j], x[j + 4], 0x88);
        y[j + 4] = _mm512_shuffle_f32x4(x[j], x[j + 4], 0xdd);
        y[j + 8] = _mm512_shuffle_f32x4(x[j + 8], x[j + 12], 0x88);
        y[j + 12] = _mm512_shuffle_f32x4(x[j + 8], x[j + 12], 0xdd);
    }
    for (int j = 0; j < 4; ++j) {
        x[j] = _mm512_shuffle_f32x4(y[j], y[j + 8], 0x88);
        x[j + 4] = _mm512_shuffle_f32x4(y[j + 4], y[j + 12], 0x88);
        x[j + 8] = _mm512_shuffle_f32x4(y[j], y[j + 8], 0xdd);
        x[j + 12] = _mm512_shuffle_f32x4(y[j + 4], y[j + 12], 0xdd);
    }
}

// scores[r][0 .. 16 B) = query rows x transposed keys.
template <int R, int B>
INLINE void score_tile(const float* query, int stride, const float* transposed, int padded, int head_width, float* scores) {
    __m512 sums[R][B];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
        for (int b = 0; b < B; ++b) sums[r][b] = _mm512_setzero_ps();
    for (int d = 0; d < head_width; ++d) {
        __m512 keys[B];
#pragma GCC unroll 12
        for (int b = 0; b < B; ++b) keys[b] = _mm512_load_ps(transposed + static_cast<size_t>(d) * padded + 16 * b);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const __m512 q = _mm512_set1_ps(query[static_cast<size_t>(r) * stride + d]);
#pragma GCC unroll 12
            for (int b = 0; b < B; ++b) sums[r][b] = _mm512_fmadd_ps(q, keys[b], sums[r][b]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
        for (int b = 0; b < B; ++b) _mm512_store_ps(scores + static_cast<size_t>(r) * padded + 16 * b, sums[r][b]);
}

template <int R>
INLINE void score_rows(const float* query, int stride, const float* transposed, int padded, int head_width, float* scores) {
    int b = 0;
    for (; b + 64 <= padded; b += 64) score_tile<R, 4>(query, stride, transposed + b, padded, head_width, scores + b);
    switch ((padded - b) / 16) {
        case 1: score_tile<R, 1>(query, stride, transposed + b, padded, head_width, scores + b); break;
        case 2: score_tile<R, 2>(query, stride, transposed + b, padded, head_width, scores + b); break;
        case 3: score_tile<R, 3>(query, stride, transposed + b, padded, head_width, scores + b); break;
    }
}

// Scores in place to exp(score - largest); gives 1 / their sum.
INLINE float soften(float* scores, int keys, float factor) {
    const int whole = keys / 16 * 16;
    const __mmask16 rest = static_cast<__mmask16>((1u << (keys - whole)) - 1);
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    __m512 most = lowest;
    for (int j = 0; j < whole; j += 16) most = _mm512_max_ps(most, _mm512_load_ps(scores + j));
    if (rest) most = _mm512_max_ps(most, _mm512_mask_loadu_ps(lowest, rest, scores + whole));
    const __m512 scale = _mm512_set1_ps(factor * 1.44269504f);
    const __m512 top = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(most)), scale);
    __m512 sum = _mm512_setzero_ps();
    for (int j = 0; j < whole; j += 16) {
        const __m512 e = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(scores + j), scale, top));
        _mm512_store_ps(scores + j, e);
        sum = _mm512_add_ps(sum, e);
    }
    if (rest) {
        const __m512 e = _mm512_maskz_mov_ps(rest, exp2_of(_mm512_fmsub_ps(_mm512_load_ps(scores + whole), scale, top)));
        _mm512_store_ps(scores + whole, e);
        sum = _mm512_add_ps(sum, e);
    }
    return 1.0f / _mm512_reduce_add_ps(sum);
}

// out[r] = (weights[r] x value) * inverse[r] for 16 W columns.
template <int R, int W>
INLINE void mix_tile(const float* weights, int padded, const float* value, int stride, int keys, const float* inverse, float* out,
                     int out_stride) {
    __m512 sums[R][W];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
        for (int w = 0; w < W; ++w) sums[r][w] = _mm512_setzero_ps();
    for (int j = 0; j < keys; ++j) {
        __m512 v[W];
#pragma GCC unroll 12
        for (int w = 0; w < W; ++w) v[w] = _mm512_loadu_ps(value + static_cast<size_t>(j) * stride + 16 * w);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const __m512 p = _mm512_set1_ps(weights[static_cast<size_t>(r) * padded + j]);
#pragma GCC unroll 12
            for (int w = 0; w < W; ++w) sums[r][w] = _mm512_fmadd_ps(p, v[w], sums[r][w]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
        for (int w = 0; w < W; ++w)
            _mm512_storeu_ps(out + static_cast<size_t>(r) * out_stride + 16 * w, _mm512_mul_ps(sums[r][w], _mm512_set1_ps(inverse[r])));
}

template <int W>
void attend_wide(const float* query, const float* key, const float* value, int stride, int queries, int keys, float factor, float* out,
                 int out_stride, float* scratch) {
    constexpr int kHead = 16 * W;
    constexpr int kQueries = 12;
    const int padded = (keys + 15) / 16 * 16;
    float* transposed = scratch;  // [head width, padded]
    float* scores = scratch + static_cast<size_t>(padded) * kHead;
    for (int j = 0; j < padded; j += 16)
        for (int d = 0; d < kHead; d += 16) {
            __m512 block[16];
            for (int i = 0; i < 16; ++i)
                block[i] = j + i < keys ? _mm512_loadu_ps(key + static_cast<size_t>(j + i) * stride + d) : _mm512_setzero_ps();
            transpose_16x16(block);
            for (int i = 0; i < 16; ++i) _mm512_store_ps(transposed + static_cast<size_t>(d + i) * padded + j, block[i]);
        }
    for (int i = 0; i < queries; i += kQueries) {
        const int rows = queries - i < kQueries ? queries - i : kQueries;
        const float* q = query + static_cast<size_t>(i) * stride;
        for (int r = 0; r < rows; r += 6) {
            const float* at = q + static_cast<size_t>(r) * stride;
            float* to = scores + static_cast<size_t>(r) * padded;
            switch (rows - r) {
                case 1: score_rows<1>(at, stride, transposed, padded, kHead, to); break;
                case 2: score_rows<2>(at, stride, transposed, padded, kHead, to); break;
                case 3: score_rows<3>(at, stride, transposed, padded, kHead, to); break;
                case 4: score_rows<4>(at, stride, transposed, padded, kHead, to); break;
                case 5: score_rows<5>(at, stride, transposed, padded, kHead, to); break;
                default: score_rows<6>(at, stride, transposed, padded, kHead, to);
            }
        }
        float inverse[kQueries];
        for (int r = 0; r < rows; ++r) inverse[r] = soften(scores + static_cast<size_t>(r) * padded, keys, factor);
        constexpr int kStep = 24 / W;  // rows of a tile
        for (int r = 0; r < rows;) {
            const float* p = scores + static_cast<size_t>(r) * padded;
            float* to = out + static_cast<size_t>(i + r) * out_stride;
            const int left = rows - r;
            if (left >= kStep) {
                mix_tile<kStep, W>(p, padded, value, stride, keys, inverse + r, to, out_stride);
                r += kStep;
            } else if (left >= 4) {
                mix_tile<4, W>(p, padded, value, stride, keys, inverse + r, to, out_stride);
                r += 4;
            } else {
                mix_tile<1, W>(p, padded, value, stride, keys, inverse + r, to, out_stride);
                r += 1;
            }
        }
    }
}

void attend(const float* query, const float* key, const float* value, int stride, int queries, int keys, int head_width, float factor,
            float* out, int out_stride, float* scratch) {
    if (head_width == 32)
        attend_wide<2>(query, key, value, stride, queries, keys, factor, out, out_stride, scratch);
    else
        attend_wide<4>(query, key, value, stride, queries, keys, factor, out, out_stride, scratch);
}

}  // namespace

const Kernels* avx512_kernels() {
    static const Kernels kernels{"avx512_vnni", 0, linear, linear_gelu, quantize, quantize_gelu, normalize, attend};
    const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    return runs ? &kernels : nullptr;
}

}  // namespace crossforge

#else

namespace crossforge {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace crossforge

#endif
