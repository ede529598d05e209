#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "tensor.h"

namespace dexport {

/// A stream of standard normal numbers, the same bits as `noise.py` gives; that module says how bits are made equal everywhere.
/// Each call continues where the last one stopped.
class Noise {
public:
    virtual ~Noise() = default;

    /// Draws the float32 numbers of `shape` into `out`.
    virtual void draw(float* out, const Shape& shape) = 0;
};

/// The stream of a PyTorch CPU generator's float32 `randn`, equal within 1e-6.
///
/// Draws of fewer than 16 numbers take two words of MT19937 per uniform number and keep the second number of a pair for the
/// next small draw. Bigger draws take one word per uniform number and blocks of 16, eight radii, then eight angles; when 16
/// does not divide the size, the last 16 numbers are drawn again. As in PyTorch only the low 32 bits of the seed count.
class TorchNoise final : public Noise {
public:
    explicit TorchNoise(std::uint64_t seed) : words_(static_cast<std::uint32_t>(seed)) {}
    void draw(float* out, const Shape& shape) override;

private:
    void draw_block(float* out);
    void draw_few(float* out, std::size_t count);
    double uniform24();
    double uniform53();

    std::mt19937 words_;
    std::optional<double> kept_;
};

/// Counter-based noise: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and Box-Muller.
/// The key is the seed (low word, high word); draw d makes its elements 4 i .. 4 i + 3 of the counter (i low, i high, d low, d high).
class PhiloxNoise final : public Noise {
public:
    explicit PhiloxNoise(std::uint64_t seed) : seed_(seed) {}
    void draw(float* out, const Shape& shape) override;

private:
    std::uint64_t seed_;
    std::uint64_t draws_ = 0;
};

/// One stream per picture: row k of every draw is from stream k. Throws a user error if axis 0 is not a row per stream.
class PicturesNoise final : public Noise {
public:
    explicit PicturesNoise(std::vector<std::unique_ptr<Noise>> streams) : streams_(std::move(streams)) {}
    void draw(float* out, const Shape& shape) override;

private:
    std::vector<std::unique_ptr<Noise>> streams_;
};

/// Noise that was drawn elsewhere, float32, handed out once. Throws a user error at a second draw or one of another shape.
class GivenNoise final : public Noise {
public:
    explicit GivenNoise(Tensor given) : given_(std::move(given)) {}
    void draw(float* out, const Shape& shape) override;

private:
    Tensor given_;
    bool used_ = false;
};

}  // namespace dexport
