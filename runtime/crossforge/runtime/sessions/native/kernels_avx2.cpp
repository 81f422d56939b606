// The steps with AVX2. Its own u8 x s8 products saturate, so codes and weights are widened to 16 bits: exact, at half the speed.
#include "kernels.h"

#if defined(__x86_64__) && defined(__AVX2__) && defined(__FMA__)

#include <vector>

#include "kernels_avx2.h"

namespace crossforge {
namespace {

struct Widened : Avx2 {
    using Code = int16_t;
    static constexpr int kRows = 4, kColumns = 8;  // more rows would not leave registers for the products on their way to the sums

    // Codes widened once for all columns.
    static const Code* prepare(const uint8_t* codes, size_t count) {
        thread_local std::vector<Code> widened;
        if (widened.size() < count) widened.resize(count);
        for (size_t i = 0; i < count; i += 16) {
            const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(widened.data() + i), wide);
        }
        return widened.data();
    }

    template <int R>
    INLINE void multiply(const Code* rows, const int8_t* panel, const int32_t* start, int inner, int32_t* sums) {
        __m256i sum[R][2];  // of four columns each: two sums a column
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
        for (int k = 0; k < inner; k += kDepth) {
            const __m256i left = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(panel)));
            const __m256i right = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(panel + 16)));
            panel += kPanel * kDepth;
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const auto* four = reinterpret_cast<const double*>(rows + static_cast<size_t>(r) * inner + k);
                const __m256i codes = _mm256_castpd_si256(_mm256_broadcast_sd(four));
                sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(codes, left));
                sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(codes, right));
            }
        }
        const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start));
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const __m256i mixed = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[r][0], sum[r][1]), 0xd8);
            _mm256_store_si256(reinterpret_cast<__m256i*>(sums + kColumns * r), _mm256_add_epi32(first, mixed));
        }
    }
};

}  // namespace

const Kernels* avx2_kernels() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &Steps<Widened>::kernels("avx2") : nullptr;
}

}  // namespace crossforge

#else

namespace crossforge {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace crossforge

#endif
