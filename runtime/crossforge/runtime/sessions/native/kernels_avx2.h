// Registers of eight floats, for kernels_avx2.cpp and kernels_avx_vnni.cpp, which multiply integers in different ways.
#pragma once

#include <immintrin.h>

#include "kernels_vector.h"

namespace crossforge {
namespace {

struct Avx2 {
    using Floats = __m256;
    static constexpr int kWidth = 8, kVectors = 2, kCodeOffset = 0;

    INLINE Floats set(float x) { return _mm256_set1_ps(x); }
    INLINE Floats load(const float* p) { return _mm256_loadu_ps(p); }
    INLINE Floats load(const int32_t* p) { return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    INLINE void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
    INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
    INLINE Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
    INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
    INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
    INLINE Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
    INLINE Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
    INLINE Floats abs(Floats x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
    INLINE Floats round(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    INLINE __m256i bits(Floats x) { return _mm256_castps_si256(x); }

    INLINE Floats power_of_two(Floats whole) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23));
    }

    // table[the lowest four bits of index]
    INLINE Floats look_up(const float* table, __m256i index) {
        const Floats low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), index);
        const Floats high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), index);
        return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
    }

    INLINE float largest(Floats x) {
        __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_max_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
    }

    INLINE float sum(Floats x) {
        __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_add_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
    }

    INLINE void store_codes(uint8_t* out, Floats x, int zero) {
        const __m256i code = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(zero));
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
    }

};

}  // namespace
}  // namespace crossforge
