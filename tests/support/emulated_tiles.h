// What AMX's instructions do, from their description in Intel's Software Developer's Manual, for processors that have none:
// compile kernels_amx.cpp with -DCROSSFORGE_TILES='"emulated_tiles.h"'. What the processor would fault on ends the program here.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated {

struct Tile {
    int rows = 0, row_bytes = 0;
    uint8_t cells[16][64];
};
inline thread_local Tile tiles[8];
inline thread_local bool configured = false;

inline void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "tiles: %s\n", what);
    std::abort();
}

inline Tile& tile(int index) {
    require(configured, "used without a configuration");
    require(tiles[index].rows && tiles[index].row_bytes, "used without a shape");
    return tiles[index];
}

inline void configure(const void* from) {
    uint8_t bytes[64];
    std::memcpy(bytes, from, sizeof bytes);
    require(bytes[0] == 1 && bytes[1] == 0, "palette 1 and start row 0 alone are known");
    for (int i = 2; i < 16; ++i) require(bytes[i] == 0, "reserved bytes are 0");
    for (int i = 0; i < 16; ++i) {
        uint16_t row_bytes;
        std::memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof row_bytes);
        const int rows = bytes[48 + i];
        require(row_bytes <= 64 && rows <= 16 && (i < 8 || !(row_bytes || rows)), "eight tiles of at most 16 rows of 64 bytes");
        if (i < 8) {
            tiles[i] = Tile{};
            tiles[i].rows = rows;
            tiles[i].row_bytes = row_bytes;
        }
    }
    configured = true;
}

inline void release() {
    configured = false;
    for (Tile& t : tiles) t = Tile{};
}

inline void load(int index, const void* base, int64_t stride) {
    Tile& to = tile(index);
    for (int r = 0; r < to.rows; ++r) std::memcpy(to.cells[r], static_cast<const uint8_t*>(base) + r * stride, to.row_bytes);
}

inline void store(int index, void* base, int64_t stride) {
    const Tile& from = tile(index);
    for (int r = 0; r < from.rows; ++r) std::memcpy(static_cast<uint8_t*>(base) + r * stride, from.cells[r], from.row_bytes);
}

// sums[m][n] += a[m][4k + i] (unsigned) x b[k][4n + i] (signed), for all k and i < 4.
inline void add_products(int sums, int a, int b) {
    Tile &c = tile(sums), &left = tile(a), &right = tile(b);
    require(c.rows == left.rows && c.row_bytes == right.row_bytes && left.row_bytes == 4 * right.rows, "shapes that do not fit");
    for (int m = 0; m < c.rows; ++m)
        for (int n = 0; n < c.row_bytes / 4; ++n) {
            int32_t sum;
            std::memcpy(&sum, c.cells[m] + 4 * n, sizeof sum);
            for (int k = 0; k < right.rows; ++k)
                for (int i = 0; i < 4; ++i) sum += left.cells[m][4 * k + i] * static_cast<int8_t>(right.cells[k][4 * n + i]);
            std::memcpy(c.cells[m] + 4 * n, &sum, sizeof sum);
        }
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#define _tile_loadconfig emulated::configure
#define _tile_release emulated::release
#define _tile_loadd emulated::load
#define _tile_stored emulated::store
#define _tile_dpbusd emulated::add_products
