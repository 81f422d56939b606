// The steps with AVX-512 and its VNNI instructions, once for kernels_avx512.cpp and for kernels_amx.cpp, which multiplies most rows another
// way. For files that are compiled with AVX-512.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

namespace crossforge {
namespace {

constexpr int kRows = 6;    // a tile of 6 rows x 4 registers: 24 sums, 4 weights and 1 activation fill the 32 registers
constexpr int kWide = 4;    // registers of 16 columns

// What a product ends with.
struct Plain {
    static constexpr bool kGelu = false;
};
struct Gelu {
    static constexpr bool kGelu = true;
};

// What multiplies blocks of 16 and 32 rows: nothing but the instructions here, or what has these members and
//     configure(), multiply(rows, count, panel, start, inner, sums) and release().
struct NoTiles {
    static constexpr int kRows = 0;
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

// What a panel's sums become: out = sums * row scale * column scale + bias, and GELU of it.
template <class Kind>
INLINE void finish(const int32_t* sums, int rows, const float* row_scales, const Linear& layer, int column, float* out, int out_stride,
                   float* largest) {
    __m512 scale[kWide], bias[kWide];
#pragma GCC unroll 4
    for (int w = 0; w < kWide; ++w) {
        scale[w] = _mm512_loadu_ps(layer.scale + column + 16 * w);
        bias[w] = _mm512_loadu_ps(layer.bias + column + 16 * w);
    }
#pragma GCC unroll 1
    for (int r = 0; r < rows; ++r) {
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

template <int R, class Kind>
INLINE void tile(const uint8_t* rows, const float* row_scales, const int8_t* panel, const Linear& layer, int column, float* out,
                 int out_stride, float* largest) {
    alignas(64) int32_t sums[R * kPanel];
    multiply<R>(rows, panel, layer.start + column, layer.inner, sums);
    finish<Kind>(sums, R, row_scales, layer, column, out, out_stride, largest);
}

// The product of as many rows as fill tiles; gives their number.
template <class Tiles, class Kind>
int tiled_product(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, int first_column, int columns,
                  float* out, int out_stride, float* largest) {
    const int whole = count / Tiles::kRows * Tiles::kRows;
    if (!whole) return 0;
    alignas(64) int32_t sums[2 * Tiles::kRows * kPanel];
    Tiles::configure();
    for (int c = 0; c < columns; c += kPanel) {
        const int column = first_column + c;
        const int8_t* panel = layer.panels + static_cast<size_t>(column) * layer.inner;
        for (int r = 0, some; r < whole; r += some) {
            some = whole - r < 2 * Tiles::kRows ? Tiles::kRows : 2 * Tiles::kRows;
            Tiles::multiply(rows + static_cast<size_t>(r) * layer.inner, some, panel, layer.start + column, layer.inner, sums);
            finish<Kind>(sums, some, row_scales + r, layer, column, out + static_cast<size_t>(r) * out_stride + c, out_stride,
                         largest + 16 * r);
        }
    }
    Tiles::release();
    return whole;
}

template <class Tiles, class Kind>
void product(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, int first_column, int columns, float* out,
             int out_stride, float* largest) {
    int tiled = 0;
    if constexpr (Tiles::kRows > 0)
        tiled = tiled_product<Tiles, Kind>(rows, row_scales, count, layer, first_column, columns, out, out_stride, largest);
    for (int c = 0; c < columns; c += kPanel) {
        const int column = first_column + c;
        const int8_t* panel = layer.panels + static_cast<size_t>(column) * layer.inner;
        for (int r = tiled; r < count; r += kRows) {
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

template <class Tiles>
void linear(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, int first_column, int columns, float* out,
            int out_stride) {
    product<Tiles, Plain>(rows, row_scales, count, layer, first_column, columns, out, out_stride, nullptr);
}

template <class Tiles>
void linear_gelu(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, float* out, int out_stride,
                 float* largest) {
    constexpr int kBlock = 96;
    alignas(64) float lanes[kBlock * 16];
    for (int r = 0; r < count; r += kBlock) {
        const int block = count - r < kBlock ? count - r : kBlock;
        product<Tiles, Gelu>(rows + static_cast<size_t>(r) * layer.inner, row_scales + r, block, layer, 0, layer.columns,
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

// 2^x for -100 <= x <= 100: a polynomial on [-1/2, 1/2], within 4e-6 relatively.
INLINE __m512 exp2_of(__m512 x) {
    const __m512 magic = _mm512_set1_ps(12582912.0f);  // 1.5 x 2^23: what is added to it is rounded, and stands in its lowest bits
    const __m512 shifted = _mm512_add_ps(x, magic);
    const __m512 part = _mm512_sub_ps(x, _mm512_sub_ps(shifted, magic));
    __m512 p = _mm512_set1_ps(9.57010034e-3f);
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(5.59178591e-2f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(2.40247443e-1f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(6.93121791e-1f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(9.99999285e-1f));
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
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

// Attention's two products are of 16-bit integers: two products and sums an instruction and a lane, where float32 has one. No sum
// leaves 32 bits: one of scores adds up 64 products, one of values kChunk, which then goes on in float32.
constexpr float kCode = 4095, kValueCode = 511, kWeightCode = 32767;
constexpr int kChunk = 128;

// sum + a x b, in pairs. In assembly because GCC 12 else copies every sum to memory inside the loops.
INLINE void add_products(__m512i& sum, __m512i a, __m512i b) { asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }

INLINE __m512i codes_of(__m512 x, __m512 inverse) { return _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)); }

INLINE __m512i broadcast_pair(const int16_t* from) {
    int32_t two;
    std::memcpy(&two, from, sizeof two);
    return _mm512_set1_epi32(two);
}

// What a code is worth where the largest of `rows` values gets the code `largest`.
template <int W>
INLINE float scale_of(const float* x, int stride, int rows, float largest) {
    __m512 most = _mm512_setzero_ps();
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w)
            most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + static_cast<size_t>(r) * stride + 16 * w)));
    const float scale = _mm512_reduce_max_ps(most) / largest;
    return scale > kSmallestScale ? scale : kSmallestScale;
}

// A row's codes, 16 W of 16 bits.
template <int W>
INLINE void pack_row(const float* x, __m512 inverse, int16_t* packed) {
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w)
        _mm256_store_si256(reinterpret_cast<__m256i*>(packed + 16 * w),
                           _mm512_cvtepi32_epi16(codes_of(_mm512_loadu_ps(x + 16 * w), inverse)));
}

// Codes of all keys as [keys / 16][head width / 2][16][2], zeros behind the last; gives their scale.
template <int W>
INLINE float pack_keys(const float* key, int stride, int keys, int16_t* packed) {
    constexpr int kHead = 16 * W;
    const float scale = scale_of<W>(key, stride, keys, kCode);
    const __m512 inverse = _mm512_set1_ps(1 / scale);
    alignas(64) int16_t rows[16 * kHead];
    for (int j = 0; j < keys; j += 16) {
        for (int i = 0; i < 16; ++i)
            if (j + i < keys)
                pack_row<W>(key + static_cast<size_t>(j + i) * stride, inverse, rows + kHead * i);
            else
                std::memset(rows + kHead * i, 0, kHead * sizeof(int16_t));
        for (int d = 0; d < kHead; d += 32) {
            __m512 block[16];
            for (int i = 0; i < 16; ++i) block[i] = _mm512_load_ps(rows + kHead * i + d);
            transpose_16x16(block);
            for (int i = 0; i < 16; ++i, packed += 32) _mm512_store_ps(packed, block[i]);
        }
    }
    return scale;
}

// Codes of all values as [keys / 2][head width][2], and each column's scale.
template <int W>
INLINE void pack_values(const float* value, int stride, int keys, int16_t* packed, float* scales) {
    __m512 inverse[W];
    for (int w = 0; w < W; ++w) {
        __m512 most = _mm512_set1_ps(kSmallestScale);
        for (int j = 0; j < keys; ++j)
            most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(value + static_cast<size_t>(j) * stride + 16 * w)));
        _mm512_store_ps(scales + 16 * w, _mm512_mul_ps(most, _mm512_set1_ps(1 / kValueCode)));
        inverse[w] = _mm512_div_ps(_mm512_set1_ps(kValueCode), most);
    }
    for (int j = 0; j < keys; j += 2)
        for (int w = 0; w < W; ++w, packed += 32) {
            const float* at = value + static_cast<size_t>(j) * stride + 16 * w;
            const __m512i even = codes_of(_mm512_loadu_ps(at), inverse[w]);
            const __m512i odd = j + 1 < keys ? codes_of(_mm512_loadu_ps(at + stride), inverse[w]) : _mm512_setzero_si512();
            _mm512_store_si512(packed, _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16)));
        }
}

// scores[r][0 .. 16 B) = rows of queries x keys, in codes.
template <int R, int B, int W>
INLINE void score_tile(const int16_t* queries, const int16_t* keys, int padded, int32_t* scores) {
    constexpr int kHead = 16 * W;
    __m512i sums[R][B];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
        for (int b = 0; b < B; ++b) sums[r][b] = _mm512_setzero_si512();
#pragma GCC unroll 1
    for (int d = 0; d < kHead; d += 2) {
        __m512i k[B];
#pragma GCC unroll 12
        for (int b = 0; b < B; ++b) k[b] = _mm512_load_si512(keys + 16 * kHead * b + 16 * d);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const __m512i q = broadcast_pair(queries + kHead * r + d);
#pragma GCC unroll 12
            for (int b = 0; b < B; ++b) add_products(sums[r][b], q, k[b]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
        for (int b = 0; b < B; ++b) _mm512_store_si512(scores + static_cast<size_t>(r) * padded + 16 * b, sums[r][b]);
}

template <int R, int W>
INLINE void score_rows(const int16_t* queries, const int16_t* keys, int padded, int32_t* scores) {
    constexpr int kHead = 16 * W;
    int j = 0;
    for (; j + 64 <= padded; j += 64) score_tile<R, 4, W>(queries, keys + j * kHead, padded, scores + j);
    switch ((padded - j) / 16) {
        case 1: score_tile<R, 1, W>(queries, keys + j * kHead, padded, scores + j); break;
        case 2: score_tile<R, 2, W>(queries, keys + j * kHead, padded, scores + j); break;
        case 3: score_tile<R, 3, W>(queries, keys + j * kHead, padded, scores + j); break;
    }
}

// Codes of exp2((score - largest score) * scale), the largest kWeightCode, zeros behind the last key; gives 1 / their sum.
INLINE float soften(const int32_t* scores, int keys, float scale, int16_t* weights) {
    const int whole = keys / 16 * 16;
    const __mmask16 rest = static_cast<__mmask16>((1u << (keys - whole)) - 1);
    __m512i most = _mm512_set1_epi32(INT32_MIN);
    for (int j = 0; j < whole; j += 16) most = _mm512_max_epi32(most, _mm512_load_si512(scores + j));
    if (rest) most = _mm512_mask_max_epi32(most, rest, most, _mm512_load_si512(scores + whole));
    constexpr float kLog2OfLargest = 14.99996f;
    const __m512 factor = _mm512_set1_ps(scale);
    const __m512 top = _mm512_set1_ps(static_cast<float>(_mm512_reduce_max_epi32(most)) * scale - kLog2OfLargest);
    const __m512 least = _mm512_set1_ps(-2);  // rounds to 0
    __m512i total = _mm512_setzero_si512();
    for (int j = 0; j < keys; j += 16) {
        const __m512 x = _mm512_fmsub_ps(_mm512_cvtepi32_ps(_mm512_load_si512(scores + j)), factor, top);
        __m512i code = _mm512_cvtps_epi32(exp2_of(_mm512_max_ps(x, least)));
        if (j == whole) code = _mm512_maskz_mov_epi32(rest, code);
        total = _mm512_add_epi32(total, code);
        _mm256_store_si256(reinterpret_cast<__m256i*>(weights + j), _mm512_cvtepi32_epi16(code));
    }
    return 1.0f / static_cast<float>(_mm512_reduce_add_epi32(total));
}

// out[r] = (weights[r] x values) * inverse[r].
template <int R, int W>
INLINE void mix_tile(const int16_t* weights, int padded, const int16_t* values, const float* scales, int keys, const float* inverse,
                     float* out, int out_stride) {
    for (int first = 0; first < keys; first += kChunk) {
        const int last = keys < first + kChunk ? keys : first + kChunk;
        __m512i sums[R][W];
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
            for (int w = 0; w < W; ++w) sums[r][w] = _mm512_setzero_si512();
#pragma GCC unroll 1
        for (int j = first; j < last; j += 2) {
            __m512i v[W];
#pragma GCC unroll 12
            for (int w = 0; w < W; ++w) v[w] = _mm512_load_si512(values + 16 * W * j + 32 * w);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const __m512i p = broadcast_pair(weights + static_cast<size_t>(r) * padded + j);
#pragma GCC unroll 12
                for (int w = 0; w < W; ++w) add_products(sums[r][w], p, v[w]);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
            for (int w = 0; w < W; ++w) {
                const __m512 scale = _mm512_mul_ps(_mm512_load_ps(scales + 16 * w), _mm512_set1_ps(inverse[r]));
                float* to = out + static_cast<size_t>(r) * out_stride + 16 * w;
                const __m512 before = first ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
                _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][w]), scale, before));
            }
    }
}

template <int W>
void attend_wide(const float* query, const float* key, const float* value, int stride, int queries, int keys, float factor, float* out,
                 int out_stride, float* scratch) {
    constexpr int kHead = 16 * W;
    constexpr int kQueries = 12;
    const int padded = (keys + 15) / 16 * 16;
    auto* key_codes = reinterpret_cast<int16_t*>(scratch);
    int16_t* value_codes = key_codes + static_cast<size_t>(padded) * kHead;
    int16_t* weights = value_codes + static_cast<size_t>(padded) * kHead;
    auto* scores = reinterpret_cast<int32_t*>(weights + kQueries * padded);
    alignas(64) int16_t query_codes[kQueries * kHead];
    alignas(64) float value_scales[kHead];
    const float query_scale = scale_of<W>(query, stride, queries, kCode), key_scale = pack_keys<W>(key, stride, keys, key_codes);
    const __m512 query_inverse = _mm512_set1_ps(1 / query_scale);
    pack_values<W>(value, stride, keys, value_codes, value_scales);
    for (int i = 0; i < queries; i += kQueries) {
        const int rows = queries - i < kQueries ? queries - i : kQueries;
        float inverse[kQueries];
        for (int r = 0; r < rows; ++r)
            pack_row<W>(query + static_cast<size_t>(i + r) * stride, query_inverse, query_codes + kHead * r);
        for (int r = 0; r < rows; r += 6) {
            const int16_t* at = query_codes + kHead * r;
            int32_t* to = scores + static_cast<size_t>(r) * padded;
            switch (rows - r) {
                case 1: score_rows<1, W>(at, key_codes, padded, to); break;
                case 2: score_rows<2, W>(at, key_codes, padded, to); break;
                case 3: score_rows<3, W>(at, key_codes, padded, to); break;
                case 4: score_rows<4, W>(at, key_codes, padded, to); break;
                case 5: score_rows<5, W>(at, key_codes, padded, to); break;
                default: score_rows<6, W>(at, key_codes, padded, to);
            }
        }
        for (int r = 0; r < rows; ++r)
            inverse[r] = soften(scores + static_cast<size_t>(r) * padded, keys, factor * query_scale * key_scale * 1.44269504f,
                                weights + static_cast<size_t>(r) * padded);
        constexpr int kStep = 24 / W;  // rows of a tile
        for (int r = 0; r < rows;) {
            const int16_t* p = weights + static_cast<size_t>(r) * padded;
            float* to = out + static_cast<size_t>(i + r) * out_stride;
            const int left = rows - r;
            if (left >= kStep) {
                mix_tile<kStep, W>(p, padded, value_codes, value_scales, keys, inverse + r, to, out_stride);
                r += kStep;
            } else if (left >= 4) {
                mix_tile<4, W>(p, padded, value_codes, value_scales, keys, inverse + r, to, out_stride);
                r += 4;
            } else {
                mix_tile<1, W>(p, padded, value_codes, value_scales, keys, inverse + r, to, out_stride);
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

template <class Tiles>
constexpr Kernels kernels_named(const char* name) {
    return {name, 0, linear<Tiles>, linear_gelu<Tiles>, quantize, quantize_gelu, normalize, attend};
}

}  // namespace
}  // namespace crossforge
