// Compares a kind of kernels with the plain ones, or with another kind, on random encoders, where Python cannot: under an emulator, or compiled in another way.
//
//     compare_kernels KERNELS [EQUAL_KERNELS]
//
// Exits with 1, and says what was found, where they differ from the plain ones by more than values on the edge of two codes can make,
// or from EQUAL_KERNELS at all.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "engine.h"

namespace {

std::mt19937 generator(7);

struct Tensors {  // keeps what a crossforge_model points to
    std::vector<std::vector<float>> floats;
    std::vector<std::vector<int8_t>> bytes;

    const float* uniform(size_t count, float low, float high) {
        std::uniform_real_distribution<float> values(low, high);
        floats.emplace_back(count);
        for (float& x : floats.back()) x = values(generator);
        return floats.back().data();
    }

    const int8_t* codes(size_t count) {
        std::uniform_int_distribution<int> values(-127, 127);
        bytes.emplace_back(count);
        for (int8_t& x : bytes.back()) x = static_cast<int8_t>(values(generator));
        return bytes.back().data();
    }
};

struct Encoder {
    Tensors tensors;
    std::vector<crossforge_layer> layers;
    crossforge_model model{};

    Encoder(int hidden, int heads, int wide) : layers(2) {
        Tensors& t = tensors;
        const float high = 3 / (100 * std::sqrt(static_cast<float>(hidden)));
        auto linear = [&](int in, int out, const float* smoothing) {
            return crossforge_linear{t.codes(static_cast<size_t>(in) * out), t.uniform(out, high / 3, high), t.uniform(out, -0.5f, 0.5f),
                                     smoothing};
        };
        auto norm = [&] { return crossforge_norm{t.uniform(hidden, 0.5f, 2), t.uniform(hidden, -0.5f, 0.5f)}; };
        for (auto& layer : layers) {
            const float* smoothing = t.uniform(hidden, 0.5f, 2);
            layer = {linear(hidden, hidden, smoothing), linear(hidden, hidden, smoothing), linear(hidden, hidden, smoothing),
                     linear(hidden, hidden, nullptr),   linear(hidden, wide, t.uniform(hidden, 0.5f, 2)),
                     linear(wide, hidden, nullptr),     norm(),
                     norm()};
        }
        const size_t square = static_cast<size_t>(hidden) * hidden;
        model = {hidden, heads, 2, wide, 50, 200, 2, 3, -1, 1e-12f, t.codes(50u * hidden), t.uniform(50, high / 3, high),
                 t.uniform(200u * hidden, -0.5f, 0.5f), t.uniform(2u * hidden, -0.5f, 0.5f), norm(), layers.data(),
                 t.uniform(square, -0.5f, 0.5f), t.uniform(hidden, -0.5f, 0.5f), t.uniform(3u * hidden, -0.5f, 0.5f),
                 t.uniform(3, -0.5f, 0.5f)};
    }
};

std::vector<float> run(const Encoder& encoder, const char* kernels, const std::vector<int>& lengths, int width) {
    crossforge_engine* engine = crossforge_open(&encoder.model, kernels);
    if (!engine) {
        std::printf("%s kernels do not run here\n", kernels);
        std::exit(2);
    }
    const size_t cells = lengths.size() * width;
    std::vector<int64_t> ids(cells), mask(cells), segments(cells);
    for (size_t i = 0; i < lengths.size(); ++i)
        for (int t = 0; t < lengths[i]; ++t) {
            ids[i * width + t] = (lengths[i] * 31 + t * 17) % 50;
            mask[i * width + t] = 1;
            segments[i * width + t] = t > lengths[i] / 3;
        }
    std::vector<float> logits(lengths.size() * 3);
    if (crossforge_run(engine, ids.data(), mask.data(), segments.data(), lengths.size(), width, logits.data())) std::exit(3);
    crossforge_close(engine);
    return logits;
}

}  // namespace

int main(int count, char** arguments) {
    const bool equal = count > 2;
    const char* reference = equal ? arguments[2] : "scalar";
    const std::vector<int> lengths{1, 2, 5, 16, 17, 31, 40, 64, 67, 100, 3};
    int compared = 0, far = 0, failed = 0;
    float largest = 0, spread = 0;
    for (const auto& [hidden, heads, wide] : {std::array<int, 3>{64, 2, 128}, {128, 2, 192}, {192, 6, 64}}) {
        const Encoder encoder(hidden, heads, wide);
        const auto plain = run(encoder, reference, lengths, 100), vector = run(encoder, arguments[1], lengths, 100);
        for (size_t i = 0; i < plain.size(); ++i, ++compared) {
            const float difference = std::fabs(plain[i] - vector[i]);
            largest = std::fmax(largest, difference);
            far += !(difference < 0.02f);
            spread = std::fmax(spread, std::fabs(plain[i] - plain[i % 3]));
        }
        for (size_t i = 0; i < lengths.size(); ++i)  // alone and without padding, each pair is the same bit for bit
            failed += std::memcmp(run(encoder, arguments[1], {lengths[i]}, lengths[i]).data(), &vector[3 * i], 3 * sizeof(float)) != 0;
    }
    std::printf("%d logits that spread over %.1f; %d differ by more than 0.02, the most by %.4f; %d pairs differ alone\n", compared,
                spread, far, largest, failed);
    const bool close = equal ? largest == 0 : far <= compared * 3 / 10 && largest < 0.5f;
    return failed || !close || !(spread > 1) ? 1 : 0;
}
