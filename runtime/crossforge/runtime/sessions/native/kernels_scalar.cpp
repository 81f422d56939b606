// The steps in plain C++: what the others are compared with.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"

namespace crossforge {
namespace {

float product(const uint8_t* row, float row_scale, const Linear& layer, int column) {
    const int8_t* panel = layer.panels + static_cast<size_t>(column / kPanel) * kPanel * layer.inner;
    int32_t sum = layer.start[column];
    for (int k = 0; k < layer.inner; ++k)
        sum += row[k] * panel[(k / kDepth) * kPanel * kDepth + (column % kPanel) * kDepth + k % kDepth];
    return std::fma(static_cast<float>(sum), row_scale * layer.scale[column], layer.bias[column]);
}

void linear(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, int first_column, int columns, float* out,
            int out_stride) {
    for (int r = 0; r < count; ++r)
        for (int c = 0; c < columns; ++c)
            out[static_cast<size_t>(r) * out_stride + c] =
                product(rows + static_cast<size_t>(r) * layer.inner, row_scales[r], layer, first_column + c);
}

void linear_gelu(const uint8_t* rows, const float* row_scales, int count, const Linear& layer, float* out, int out_stride,
                 float* largest) {
    for (int r = 0; r < count; ++r) {
        float most = -INFINITY;
        float* row = out + static_cast<size_t>(r) * out_stride;
        for (int c = 0; c < layer.columns; ++c) {
            row[c] = gelu(product(rows + static_cast<size_t>(r) * layer.inner, row_scales[r], layer, c));
            most = std::max(most, row[c]);
        }
        largest[r] = most;
    }
}

uint8_t code(float x, float inverse, int zero) {
    return static_cast<uint8_t>(std::clamp(static_cast<int>(std::nearbyint(x * inverse)) + zero, 0, 255));
}

void quantize_row(const float* in, int width, uint8_t* out, float* scale) {
    float most = 0;
    for (int c = 0; c < width; ++c) most = std::max(most, std::fabs(in[c]));
    *scale = std::max(most * (1.0f / 127), kSmallestScale);
    for (int c = 0; c < width; ++c) out[c] = code(in[c], 1.0f / *scale, 128);
}

void quantize(const float* in, int in_stride, int count, int width, uint8_t* out, float* scales) {
    for (int r = 0; r < count; ++r)
        quantize_row(in + static_cast<size_t>(r) * in_stride, width, out + static_cast<size_t>(r) * width, scales + r);
}

void quantize_gelu(const float* in, int in_stride, int count, int width, const float* largest, uint8_t* out, float* scales) {
    for (int r = 0; r < count; ++r) {
        scales[r] = std::max(largest[r] * (1.0f / (255 - kGeluZero)), -kGeluMinimum / kGeluZero);
        for (int c = 0; c < width; ++c)
            out[static_cast<size_t>(r) * width + c] = code(in[static_cast<size_t>(r) * in_stride + c], 1.0f / scales[r], kGeluZero);
    }
}

void normalize(const float* in, const float* residual, int count, int width, const Norm& norm, float* out, uint8_t* codes,
               float* scales) {
    std::vector<float> smoothed(width);
    for (int r = 0; r < count; ++r) {
        const size_t at = static_cast<size_t>(r) * width;
        double sum = 0, squares = 0;
        for (int c = 0; c < width; ++c) {
            out[at + c] = in[at + c] + (residual ? residual[at + c] : 0.0f);
            sum += out[at + c];
        }
        const double mean = sum / width;
        for (int c = 0; c < width; ++c) squares += (out[at + c] - mean) * (out[at + c] - mean);
        const double inverse = 1 / std::sqrt(squares / width + norm.epsilon);
        for (int c = 0; c < width; ++c) {
            out[at + c] = static_cast<float>((out[at + c] - mean) * inverse) * norm.gain[c] + norm.offset[c];
            smoothed[c] = out[at + c] * (norm.smoothing ? norm.smoothing[c] : 1.0f);
        }
        if (codes) quantize_row(smoothed.data(), width, codes + at, scales + r);
    }
}

void attend(const float* query, const float* key, const float* value, int stride, int queries, int keys, int head_width, float factor,
            float* out, int out_stride, float* scratch) {
    for (int i = 0; i < queries; ++i) {
        const float* q = query + static_cast<size_t>(i) * stride;
        float most = -INFINITY, sum = 0;
        for (int j = 0; j < keys; ++j) {
            float dot = 0;
            for (int d = 0; d < head_width; ++d) dot += q[d] * key[static_cast<size_t>(j) * stride + d];
            scratch[j] = dot * factor;
            most = std::max(most, scratch[j]);
        }
        for (int j = 0; j < keys; ++j) sum += scratch[j] = std::exp(scratch[j] - most);
        for (int d = 0; d < head_width; ++d) {
            float mixed = 0;
            for (int j = 0; j < keys; ++j) mixed += scratch[j] * value[static_cast<size_t>(j) * stride + d];
            out[static_cast<size_t>(i) * out_stride + d] = mixed / sum;
        }
    }
}

}  // namespace

const Kernels& scalar_kernels() {
    static const Kernels kernels{"scalar", 0, linear, linear_gelu, quantize, quantize_gelu, normalize, attend};
    return kernels;
}

}  // namespace crossforge
