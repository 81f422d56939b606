// The steps for registers of V::kWidth floats, written once for the processors without AVX-512: kernels_avx2.h and
// kernels_neon.cpp say what a register is, and how it multiplies integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

namespace crossforge {
namespace {

// run(first row, number of rows as a constant) for all rows, kRows by kRows, six at most.
template <int kRows, class Run>
INLINE void by_tiles(int count, Run&& run) {
    int r = 0;
    for (; r + kRows <= count; r += kRows) run(r, std::integral_constant<int, kRows>());
    switch (count - r) {
        case 1: run(r, std::integral_constant<int, 1>()); break;
        case 2: run(r, std::integral_constant<int, 2>()); break;
        case 3: run(r, std::integral_constant<int, 3>()); break;
        case 4: run(r, std::integral_constant<int, 4>()); break;
        case 5: run(r, std::integral_constant<int, 5>()); break;
    }
}

template <class V>
struct Steps {
    using F = typename V::Floats;
    static constexpr int kWidth = V::kWidth;
    static constexpr int kRows = V::kRows, kColumns = V::kColumns;  // of an integer product's tile
    static constexpr int kFloatRows = 6;                     // of a float product's tile
    static constexpr int kVectors = V::kVectors;             // columns of a float product's tile, in registers
    static constexpr int kKeys = kWidth * kVectors;          // what keys are padded to

    // As in kernels.h, a register at a time.
    INLINE F gelu(F x) {
        const F u = V::min(V::abs(x), V::set(kGeluEnd));
        // Adding 2^23 leaves the nearest integer in the lowest bits.
        const auto part = V::bits(V::fma(u, V::set(kGeluParts), V::set(8388608.0f)));
        F g = V::look_up(kGelu[2], part);
        g = V::fma(g, u, V::look_up(kGelu[1], part));
        g = V::fma(g, u, V::look_up(kGelu[0], part));
        return V::sub(V::max(V::set(0.0f), x), g);
    }

    template <int R, bool WithGelu>
    INLINE void tile(const typename V::Code* rows, const float* row_scales, const Linear& layer, int column, float* out, int out_stride,
                     float* largest) {
        alignas(64) int32_t sums[R * kColumns];
        const int8_t* panel = layer.panels + static_cast<size_t>(column / kPanel) * kPanel * layer.inner + column % kPanel * kDepth;
        V::template multiply<R>(rows, panel, layer.start + column, layer.inner, sums);
        for (int r = 0; r < R; ++r) {
            const F row_scale = V::set(row_scales[r]);
            F most = V::set(-INFINITY);
            for (int c = 0; c < kColumns; c += kWidth) {
                F x = V::fma(V::load(sums + r * kColumns + c), V::mul(row_scale, V::load(layer.scale + column + c)),
                             V::load(layer.bias + column + c));
                if (WithGelu) most = V::max(most, x = gelu(x));
                V::store(out + static_cast<size_t>(r) * out_stride + c, x);
            }
            if (WithGelu) {
                float* lanes = largest + kWidth * r;
                V::store(lanes, column ? V::max(most, V::load(lanes)) : most);
            }
        }
    }

    template <bool WithGelu>
    INLINE void product(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, int first_column, int columns,
                        float* out, int out_stride, float* largest) {
        const typename V::Code* codes = V::prepare(rows, static_cast<size_t>(count) * layer.inner);
        // All columns of a panel for one tile of rows: written piece by piece, rows a power of two apart would push each other out
        // of the cache.
        for (int c = 0; c < columns; c += kPanel)
            by_tiles<kRows>(count, [&](int r, auto size) {
                for (int s = c; s < c + kPanel; s += kColumns)
                    tile<size(), WithGelu>(codes + static_cast<size_t>(r) * layer.inner, row_scales + r, layer, first_column + s,
                                           out + static_cast<size_t>(r) * out_stride + s, out_stride, largest + kWidth * r);
            });
    }

    static void linear(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, int first_column, int columns,
                       float* out, int out_stride) {
        product<false>(rows, row_scales, count, layer, first_column, columns, out, out_stride, nullptr);
    }

    static void linear_gelu(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, float* out, int out_stride,
                            float* largest) {
        constexpr int kBlock = 96;
        alignas(64) float lanes[kBlock * kWidth];
        for (int r = 0; r < count; r += kBlock) {
            const int block = std::min(kBlock, count - r);
            product<true>(rows + static_cast<size_t>(r) * layer.inner, row_scales + r, block, layer, 0, layer.columns,
                          out + static_cast<size_t>(r) * out_stride, out_stride, lanes);
            for (int i = 0; i < block; ++i) largest[r + i] = V::largest(V::load(lanes + kWidth * i));
        }
    }

    INLINE void quantize_row(const float* in, int width, uint8_t* out, float* scale, F most) {
        *scale = V::largest(most) * (1.0f / 127);
        if (!(*scale > kSmallestScale)) *scale = kSmallestScale;
        const F inverse = V::set(1.0f / *scale);
        for (int c = 0; c < width; c += kWidth) V::store_codes(out + c, V::mul(V::load(in + c), inverse), 128);
    }

    static void quantize(const float* in, int in_stride, int count, int width, uint8_t* out, float* scales) {
        for (int r = 0; r < count; ++r) {
            const float* row = in + static_cast<size_t>(r) * in_stride;
            F most = V::set(0.0f);
            for (int c = 0; c < width; c += kWidth) most = V::max(most, V::abs(V::load(row + c)));
            quantize_row(row, width, out + static_cast<size_t>(r) * width, scales + r, most);
        }
    }

    static void quantize_gelu(const float* in, int in_stride, int count, int width, const float* largest, uint8_t* out,
                              float* scales) {
        for (int r = 0; r < count; ++r) {
            const float* row = in + static_cast<size_t>(r) * in_stride;
            scales[r] = std::max(largest[r] * (1.0f / (255 - kGeluZero)), -kGeluMinimum / kGeluZero);
            const F inverse = V::set(1.0f / scales[r]);
            for (int c = 0; c < width; c += kWidth)
                V::store_codes(out + static_cast<size_t>(r) * width + c, V::mul(V::load(row + c), inverse), kGeluZero);
        }
    }

    static void normalize(const float* in, const float* residual, int count, int width, const Norm& norm, float* out,
                          uint8_t* codes, float* scales) {
        alignas(64) float smoothed[4096];
        for (int r = 0; r < count; ++r) {
            const size_t at = static_cast<size_t>(r) * width;
            F sum = V::set(0.0f), squares = V::set(0.0f), most = V::set(0.0f);
            for (int c = 0; c < width; c += kWidth) {
                F x = V::load(in + at + c);
                if (residual) x = V::add(x, V::load(residual + at + c));
                V::store(out + at + c, x);
                sum = V::add(sum, x);
            }
            const F mean = V::set(V::sum(sum) / width);
            for (int c = 0; c < width; c += kWidth) {
                const F x = V::sub(V::load(out + at + c), mean);
                squares = V::fma(x, x, squares);
            }
            const F inverse = V::set(1.0f / std::sqrt(V::sum(squares) / width + norm.epsilon));
            for (int c = 0; c < width; c += kWidth) {
                F x = V::mul(V::sub(V::load(out + at + c), mean), inverse);
                x = V::fma(x, V::load(norm.gain + c), V::load(norm.offset + c));
                V::store(out + at + c, x);
                if (norm.smoothing) x = V::mul(x, V::load(norm.smoothing + c));
                V::store(smoothed + c, x);
                most = V::max(most, V::abs(x));
            }
            if (codes) quantize_row(smoothed, width, codes + at, scales + r, most);
        }
    }

    // 2^x for x <= 0: a polynomial on [-1/2, 1/2], within 3e-7 relatively. Below 2^-126 it stays there.
    INLINE F exp2_of(F x) {
        x = V::max(x, V::set(-126.0f));
        const F whole = V::round(x), part = V::sub(x, whole);
        F p = V::set(1.33335581e-3f);
        p = V::fma(p, part, V::set(9.61812911e-3f));
        p = V::fma(p, part, V::set(5.55041087e-2f));
        p = V::fma(p, part, V::set(2.40226507e-1f));
        p = V::fma(p, part, V::set(6.93147181e-1f));
        p = V::fma(p, part, V::set(1.0f));
        return V::mul(p, V::power_of_two(whole));
    }

    // Scores in place to exp(score - largest); gives 1 / their sum. The columns behind the keys are given away.
    INLINE float soften(float* scores, int keys, int padded, float factor) {
        std::fill(scores + keys, scores + padded, -INFINITY);
        F most = V::set(-INFINITY), sum = V::set(0.0f);
        for (int j = 0; j < padded; j += kWidth) most = V::max(most, V::load(scores + j));
        const F scale = V::set(factor * 1.44269504f), top = V::mul(V::set(V::largest(most)), scale);
        for (int j = 0; j < padded; j += kWidth) {
            const F e = exp2_of(V::sub(V::mul(V::load(scores + j), scale), top));
            V::store(scores + j, e);
            sum = V::add(sum, e);
        }
        return 1.0f / V::sum(sum);
    }

    // out[R][kKeys] = a[R][depth] x b[depth][kKeys], times factor[r] where there is one.
    template <int R>
    INLINE void multiply_floats(const float* a, int a_stride, const float* b, int b_stride, int depth, const float* factor, float* out,
                                int out_stride) {
        F sums[R][kVectors];
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) sums[r][v] = V::set(0.0f);
        for (int k = 0; k < depth; ++k) {
            F values[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) values[v] = V::load(b + static_cast<size_t>(k) * b_stride + kWidth * v);
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                const F x = V::set(a[static_cast<size_t>(r) * a_stride + k]);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) sums[r][v] = V::fma(x, values[v], sums[r][v]);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v)
                V::store(out + static_cast<size_t>(r) * out_stride + kWidth * v,
                         factor ? V::mul(sums[r][v], V::set(factor[r])) : sums[r][v]);
    }

    static void attend(const float* query, const float* key, const float* value, int stride, int queries, int keys, int head_width,
                       float factor, float* out, int out_stride, float* scratch) {
        constexpr int kQueries = 24;
        const int padded = (keys + kKeys - 1) / kKeys * kKeys;
        float* transposed = scratch;  // [head_width][padded]
        float* scores = scratch + static_cast<size_t>(padded) * head_width;
        for (int d = 0; d < head_width; ++d)
            for (int j = 0; j < padded; ++j)
                transposed[static_cast<size_t>(d) * padded + j] = j < keys ? key[static_cast<size_t>(j) * stride + d] : 0.0f;
        for (int first = 0; first < queries; first += kQueries) {
            const int rows = std::min(kQueries, queries - first);
            by_tiles<kFloatRows>(rows, [&](int r, auto size) {
                for (int j = 0; j < padded; j += kKeys)
                    multiply_floats<size()>(query + static_cast<size_t>(first + r) * stride, stride, transposed + j, padded, head_width,
                                            nullptr, scores + static_cast<size_t>(r) * padded + j, padded);
            });
            float inverse[kQueries];
            for (int r = 0; r < rows; ++r) inverse[r] = soften(scores + static_cast<size_t>(r) * padded, keys, padded, factor);
            by_tiles<kFloatRows>(rows, [&](int r, auto size) {
                for (int d = 0; d < head_width; d += kKeys)
                    multiply_floats<size()>(scores + static_cast<size_t>(r) * padded, padded, value + d, stride, keys, inverse + r,
                                            out + static_cast<size_t>(first + r) * out_stride + d, out_stride);
            });
        }
    }

    static const Kernels& kernels(const char* name) {
        static const Kernels all{name, V::kCodeOffset, linear, linear_gelu, quantize, quantize_gelu, normalize, attend};
        return all;
    }
};

}  // namespace
}  // namespace crossforge
