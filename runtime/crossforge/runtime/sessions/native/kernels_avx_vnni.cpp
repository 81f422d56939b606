// The steps with AVX2 and AVX-VNNI, the form of VNNI that processors without AVX-512 have. With CROSSFORGE_EVEX the same instruction
// in AVX-512's encoding, for tests on processors that have that one alone.
#include "kernels.h"

#if defined(__x86_64__) && defined(__AVX2__) && defined(__FMA__) && (defined(__AVXVNNI__) || defined(CROSSFORGE_EVEX))

#include <cpuid.h>

#include "kernels_avx2.h"

namespace crossforge {
namespace {

#ifdef CROSSFORGE_EVEX
INLINE __m256i multiply_add(__m256i sum, __m256i codes, __m256i weights) { return _mm256_dpbusd_epi32(sum, codes, weights); }
#else
INLINE __m256i multiply_add(__m256i sum, __m256i codes, __m256i weights) { return _mm256_dpbusd_avx_epi32(sum, codes, weights); }
#endif

struct Vnni : Avx2 {
    using Code = uint8_t;
    static constexpr int kRows = 6, kColumns = 16;

    INLINE const Code* prepare(const uint8_t* codes, size_t) { return codes; }

    template <int R>
    INLINE void multiply(const Code* rows, const int8_t* panel, const int32_t* start, int inner, int32_t* sums) {
        const auto* first = reinterpret_cast<const __m256i*>(start);
        __m256i sum[R][2];
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
            for (int w = 0; w < 2; ++w) sum[r][w] = _mm256_loadu_si256(first + w);
        for (int k = 0; k < inner; k += kDepth) {
            const __m256i left = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel));
            const __m256i right = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + 32));
            panel += kPanel * kDepth;
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                const auto* four = reinterpret_cast<const float*>(rows + static_cast<size_t>(r) * inner + k);
                const __m256i codes = _mm256_castps_si256(_mm256_broadcast_ss(four));
                sum[r][0] = multiply_add(sum[r][0], codes, left);
                sum[r][1] = multiply_add(sum[r][1], codes, right);
            }
        }
        auto* to = reinterpret_cast<__m256i*>(sums);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
            for (int w = 0; w < 2; ++w) _mm256_store_si256(to + 2 * r + w, sum[r][w]);
    }
};

bool has_avx_vnni() {
#ifdef CROSSFORGE_EVEX
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4)) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
}

}  // namespace

const Kernels* avx_vnni_kernels() {
    static const bool runs = has_avx_vnni();
    return runs ? &Steps<Vnni>::kernels("avx_vnni") : nullptr;
}

}  // namespace crossforge

#else

namespace crossforge {
const Kernels* avx_vnni_kernels() { return nullptr; }
}  // namespace crossforge

#endif
