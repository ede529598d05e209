// Writes the raw float32 numbers of one draw after another, for comparison with another implementation.
// Usage: print_noise torch|philox SEED[,SEED...] COUNT...: several seeds give one stream per picture, and counts are per picture.
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

#include "noise.h"

using namespace dexport;

int main(int count, char** arguments) {
    const std::string kind = arguments[1];
    std::vector<std::unique_ptr<Noise>> streams;
    std::istringstream seeds(arguments[2]);
    for (std::string seed; std::getline(seeds, seed, ',');) {
        const std::uint64_t value = std::strtoull(seed.c_str(), nullptr, 10);
        if (kind == "torch") {
            streams.push_back(std::make_unique<TorchNoise>(value));
        } else {
            streams.push_back(std::make_unique<PhiloxNoise>(value));
        }
    }
    const auto pictures = static_cast<std::int64_t>(streams.size());
    PicturesNoise noise(std::move(streams));
    for (int index = 3; index < count; ++index) {
        const Shape shape = {pictures, std::atoll(arguments[index])};
        std::vector<float> values(elements_of(shape));
        noise.draw(values.data(), shape);
        std::fwrite(values.data(), sizeof(float), values.size(), stdout);
    }
}
