// The steps on 64-bit ARM with its dot-product instructions, which multiply s8 by s8: codes are shifted by 128 on the way.
#include "kernels.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)

#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kernels_vector.h"

namespace crossforge {
namespace {

struct Neon {
    using Floats = float32x4_t;
    using Code = uint8_t;
    static constexpr int kWidth = 4, kVectors = 4, kRows = 4, kColumns = 16, kCodeOffset = 128;

    INLINE const Code* prepare(const uint8_t* codes, size_t) { return codes; }

    INLINE Floats set(float x) { return vdupq_n_f32(x); }
    INLINE Floats load(const float* p) { return vld1q_f32(p); }
    INLINE Floats load(const int32_t* p) { return vcvtq_f32_s32(vld1q_s32(p)); }
    INLINE void store(float* p, Floats x) { vst1q_f32(p, x); }
    INLINE Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
    INLINE Floats sub(Floats a, Floats b) { return vsubq_f32(a, b); }
    INLINE Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
    INLINE Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
    INLINE Floats max(Floats a, Floats b) { return vmaxq_f32(a, b); }
    INLINE Floats min(Floats a, Floats b) { return vminq_f32(a, b); }
    INLINE Floats abs(Floats x) { return vabsq_f32(x); }
    INLINE Floats round(Floats x) { return vrndnq_f32(x); }
    INLINE uint32x4_t bits(Floats x) { return vreinterpretq_u32_f32(x); }
    INLINE float largest(Floats x) { return vmaxvq_f32(x); }
    INLINE float sum(Floats x) { return vaddvq_f32(x); }

    INLINE Floats power_of_two(Floats whole) {
        return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(whole), vdupq_n_s32(127)), 23));
    }

    // table[the lowest four bits of index], byte by byte
    INLINE Floats look_up(const float* table, uint32x4_t index) {
        const uint32x4_t places = vmulq_n_u32(vandq_u32(index, vdupq_n_u32(15)), 0x04040404);
        const uint8x16_t bytes = vreinterpretq_u8_u32(vaddq_u32(places, vdupq_n_u32(0x03020100)));
        return vreinterpretq_f32_u8(vqtbl4q_u8(vld1q_u8_x4(reinterpret_cast<const uint8_t*>(table)), bytes));
    }

    INLINE void store_codes(uint8_t* out, Floats x, int zero) {
        const int16x4_t words = vqmovn_s32(vaddq_s32(vcvtnq_s32_f32(x), vdupq_n_s32(zero)));
        vst1_lane_u32(reinterpret_cast<uint32_t*>(out), vreinterpret_u32_u8(vqmovun_s16(vcombine_s16(words, words))), 0);
    }

    // One step of kDepth rows of the weight: `lane` says which four codes of a row's sixteen.
    template <int R, int kLane>
    INLINE void step(int32x4_t (&sum)[R][4], const int8x16_t (&codes)[R], const int8_t* panel) {
#pragma GCC unroll 4
        for (int w = 0; w < 4; ++w) {
            const int8x16_t weights = vld1q_s8(panel + 16 * w);
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) sum[r][w] = vdotq_laneq_s32(sum[r][w], weights, codes[r], kLane);
        }
    }

    template <int R>
    INLINE void multiply(const Code* rows, const int8_t* panel, const int32_t* start, int inner, int32_t* sums) {
        constexpr int kStep = kPanel * kDepth;
        int32x4_t sum[R][4];
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int w = 0; w < 4; ++w) sum[r][w] = vld1q_s32(start + 4 * w);
        for (int k = 0; k < inner; k += 4 * kDepth) {
            int8x16_t codes[R];
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r)
                codes[r] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(rows + static_cast<size_t>(r) * inner + k), vdupq_n_u8(128)));
            step<R, 0>(sum, codes, panel);
            step<R, 1>(sum, codes, panel + kStep);
            step<R, 2>(sum, codes, panel + 2 * kStep);
            step<R, 3>(sum, codes, panel + 3 * kStep);
            panel += 4 * kStep;
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int w = 0; w < 4; ++w) vst1q_s32(sums + kColumns * r + 4 * w, sum[r][w]);
    }
};

bool has_dot_products() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & (1ul << 20);  // HWCAP_ASIMDDP
#else
    return true;  // every 64-bit ARM processor that runs macOS has them
#endif
}

}  // namespace

const Kernels* neon_kernels() { return has_dot_products() ? &Steps<Neon>::kernels("asimddp") : nullptr; }

}  // namespace crossforge

#else

namespace crossforge {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace crossforge

#endif
