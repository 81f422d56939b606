// AVX-512's kernels, with AMX's tiles for the products of 16 rows and more: 16 rows by 16 columns by 64 products an instruction. Sums of
// integers are the same in any order, so a pair scores as with AVX-512 alone, bit for bit.
#include "kernels.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__AVX512F__) && defined(__AVX512VNNI__) && \
    (defined(__AMX_INT8__) || defined(CROSSFORGE_TILES))

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels_avx512.h"

#ifdef CROSSFORGE_TILES  // a header that computes what the instructions do, for tests on processors without them
#include CROSSFORGE_TILES
#endif

namespace crossforge {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileDepth = 64;  // products that one instruction adds to each sum

// Tiles 0 to 3 hold sums, two by two; 4 and 5 rows, 6 and 7 weights. A tile of each kind is 16 rows of 64 bytes.
struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(Configuration) == 64, "as LDTILECFG reads it");
constexpr Configuration kConfiguration{};

// Of 16 rows or 32, the sums of 32 columns.
template <bool kTwo>
void multiply_half(const uint8_t* rows, const int8_t* panel, const int32_t* start, int inner, int32_t* sums) {
    constexpr int kPanelRow = kPanel * kDepth, kSumsRow = kPanel * sizeof(int32_t);
    _tile_loadd(0, start, 0);  // a stride of 0 gives every row the same
    _tile_loadd(1, start + 16, 0);
    if (kTwo) {
        _tile_loadd(2, start, 0);
        _tile_loadd(3, start + 16, 0);
    }
    for (int k = 0; k < inner; k += kTileDepth) {
        const int8_t* weights = panel + k * kPanel;
        _tile_loadd(6, weights, kPanelRow);
        _tile_loadd(7, weights + 64, kPanelRow);
        _tile_loadd(4, rows + k, inner);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        if (kTwo) {
            _tile_loadd(5, rows + static_cast<size_t>(kTileRows) * inner + k, inner);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
    }
    _tile_stored(0, sums, kSumsRow);
    _tile_stored(1, sums + 16, kSumsRow);
    if (kTwo) {
        _tile_stored(2, sums + kTileRows * kPanel, kSumsRow);
        _tile_stored(3, sums + kTileRows * kPanel + 16, kSumsRow);
    }
}

struct Tiles {
    static constexpr int kRows = kTileRows;

    // Other libraries use tiles too: they are configured for one product, and nothing is left of it.
    static void configure() { _tile_loadconfig(&kConfiguration); }
    static void release() { _tile_release(); }

    static void multiply(const uint8_t* rows, int count, const int8_t* panel, const int32_t* start, int inner, int32_t* sums) {
        asm volatile("" ::: "memory");  // GCC's intrinsics do not say that they read memory: what is to be read is written by now
        for (int column = 0; column < kPanel; column += 32) {
            const int8_t* weights = panel + column * kDepth;
            if (count == kRows)
                multiply_half<false>(rows, weights, start + column, inner, sums + column);
            else
                multiply_half<true>(rows, weights, start + column, inner, sums + column);
        }
    }
};

// Whether this processor has tiles and the system lets this process use them, which it has to ask for.
bool tiles_run_here() {
#ifdef CROSSFORGE_TILES
    return true;
#else
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;  // of leaf 7's EDX
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kTile | kInt8)) != (kTile | kInt8)) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;  // an error before Linux 5.16
#endif
}

// Whether the tiles' sums are AVX-512's. No processor with tiles has run this yet, so each process looks before it trusts them.
bool tiles_are_right() {
    constexpr int kInner = 128, kCount = 2 * kTileRows;
    alignas(64) uint8_t rows[kCount * kInner];
    alignas(64) int8_t panel[kPanel * kInner];
    alignas(64) int32_t start[kPanel], sums[kCount * kPanel], expected[kCount * kPanel];
    uint32_t random = 1;
    auto next = [&] { return (random = random * 1664525u + 1013904223u) >> 24; };
    for (auto& x : rows) x = static_cast<uint8_t>(next());
    for (auto& x : panel) x = static_cast<int8_t>(next());
    for (auto& x : start) x = static_cast<int32_t>(next()) * -1000;
    for (int r = 0; r < kCount; ++r) multiply<1>(rows + r * kInner, panel, start, kInner, expected + r * kPanel);
    for (int count = kTileRows; count <= kCount; count += kTileRows) {
        std::memset(sums, 0, sizeof sums);
        Tiles::configure();
        Tiles::multiply(rows, count, panel, start, kInner, sums);
        Tiles::release();
        if (std::memcmp(sums, expected, sizeof(int32_t) * count * kPanel)) return false;
    }
    return true;
}

}  // namespace

const Kernels* amx_kernels() {
    static const Kernels kernels = kernels_named<Tiles>("amx_int8");
    static const bool runs = avx512_kernels() && tiles_run_here() && tiles_are_right();
    return runs ? &kernels : nullptr;
}

}  // namespace crossforge

#else

namespace crossforge {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace crossforge

#endif
