// The kernels of processors with AVX-512 and its VNNI instructions. Compiled with flags of its own; entered only where the processor has
// them.
#include "kernels.h"

#if defined(__x86_64__) && defined(__AVX512F__) && defined(__AVX512VNNI__)

#include "kernels_avx512.h"

namespace crossforge {

const Kernels* avx512_kernels() {
    static const Kernels kernels = kernels_named<NoTiles>("avx512_vnni");
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
