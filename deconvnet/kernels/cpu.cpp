// The kernels of deconvnet/kernels/__init__.py for CPUs, each on one thread. Maps lie channels-last: row after row of
// `channels` values. Sums go over blocks of rows in float32, over the blocks in float64.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

enum bf16 : uint16_t {};

inline float load(float value) { return value; }

inline float load(bf16 value) {
  uint32_t bits = uint32_t(value) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline void store(float* place, float value) { *place = value; }

inline void store(bf16* place, float value) {  // to the nearest, ties to even; a NaN stays one
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *place = bf16((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : uint16_t(rounded));
}

// The gradient where what ReLU saw is above 0, else 0; by bits, which turns into vector instructions.
inline float passed(float gradient, float seen) {
  uint32_t bits;
  std::memcpy(&bits, &gradient, 4);
  bits &= seen > 0 ? 0xffffffff : 0;
  std::memcpy(&gradient, &bits, 4);
  return gradient;
}

constexpr int64_t LANES = 256;   // values that are summed side by side, so that no sum waits for the one before
constexpr int64_t BLOCK = 128;   // of rows (of LANES values) in one float32 sum

// Rows of few channels are taken together: how many make a row of LANES values.
int64_t folded(int64_t rows, int64_t channels) {
  int64_t fold = 1;
  while (channels * fold < LANES && rows % (2 * fold) == 0) fold *= 2;
  return fold;
}

std::vector<float> repeated(const float* values, int64_t channels, int64_t fold) {
  std::vector<float> out(channels * fold);
  for (int64_t i = 0; i < channels * fold; i++) out[i] = values[i % channels];
  return out;
}

// Adds up two quantities of every value of (rows, channels) by channel. `add(row, first, second)` adds a row's.
template <typename F>
void sums(int64_t rows, int64_t length, int64_t channels, double* first, double* second, F add) {
  std::vector<float> one(length), two(length);
  for (int64_t c = 0; c < channels; c++) first[c] = second[c] = 0;
  for (int64_t begin = 0; begin < rows; begin += BLOCK) {
    int64_t end = begin + BLOCK < rows ? begin + BLOCK : rows;
    std::memset(one.data(), 0, 4 * length);
    std::memset(two.data(), 0, 4 * length);
    for (int64_t row = begin; row < end; row++) add(row, one.data(), two.data());
    for (int64_t i = 0; i < length; i++) {
      first[i % channels] += one[i];
      second[i % channels] += two[i];
    }
  }
}

template <typename T>
void batch_norm_relu(const T* x, const float* weight, const float* bias, float eps, int64_t groups, int64_t rows,
                     int64_t channels, T* y, float* statistics) {
  int64_t fold = folded(rows, channels), length = channels * fold, tall = rows / fold;
  std::vector<double> first(channels), second(channels);
  for (int64_t g = 0; g < groups; g++, x += rows * channels, y += rows * channels) {
    // Values less the first of their channel: the variance then does not drown in a large mean.
    std::vector<float> shift(length);
    for (int64_t i = 0; i < length; i++) shift[i] = load(x[i % channels]);
    sums(tall, length, channels, first.data(), second.data(), [&](int64_t row, float* __restrict one, float* __restrict two) {
      const T* values = x + row * length;
      const float* less = shift.data();
      for (int64_t i = 0; i < length; i++) {
        float value = load(values[i]) - less[i];
        one[i] += value;
        two[i] += value * value;
      }
    });
    float *mean = statistics + 2 * g * channels, *inverse = mean + channels;
    std::vector<float> scale(channels);
    for (int64_t c = 0; c < channels; c++) {
      double part = first[c] / rows, variance = second[c] / rows - part * part;
      if (variance < 0) variance = 0;
      mean[c] = float(shift[c] + part);
      inverse[c] = float(1 / std::sqrt(variance + eps));
      scale[c] = inverse[c] * weight[c];
    }
    auto scales = repeated(scale.data(), channels, fold), offsets = repeated(bias, channels, fold),
         means = repeated(mean, channels, fold);
    const float *a = scales.data(), *b = offsets.data(), *m = means.data();
    for (int64_t row = 0; row < tall; row++) {
      const T* __restrict in = x + row * length;
      T* __restrict out = y + row * length;
      for (int64_t i = 0; i < length; i++) {
        float value = (load(in[i]) - m[i]) * a[i] + b[i];
        store(out + i, value < 0 ? 0 : value);  // a NaN stays one
      }
    }
  }
}

template <typename T>
void batch_norm_relu_backward(const T* gradient, const T* x, const float* weight, const float* bias,
                              const float* statistics, int64_t groups, int64_t rows, int64_t channels, T* out,
                              float* weight_gradient, float* bias_gradient) {
  int64_t fold = folded(rows, channels), length = channels * fold, tall = rows / fold;
  std::vector<double> plain(channels), scaled(channels);
  std::vector<float> factor(channels), slope(channels), constant(channels);
  auto biases = repeated(bias, channels, fold);
  const float* b = biases.data();
  for (int64_t c = 0; c < channels; c++) weight_gradient[c] = bias_gradient[c] = 0;
  for (int64_t g = 0; g < groups; g++) {
    const float *mean = statistics + 2 * g * channels, *inverse = mean + channels;
    for (int64_t c = 0; c < channels; c++) factor[c] = weight[c] * inverse[c];
    auto means = repeated(mean, channels, fold), factors = repeated(factor.data(), channels, fold);
    const float *m = means.data(), *f = factors.data();
    sums(tall, length, channels, plain.data(), scaled.data(),
         [&](int64_t row, float* __restrict one, float* __restrict two) {
           const T *dy = gradient + row * length, *values = x + row * length;
           for (int64_t i = 0; i < length; i++) {
             float value = load(values[i]) - m[i];
             float d = passed(load(dy[i]), value * f[i] + b[i]);
             one[i] += d;
             two[i] += d * value;
           }
         });
    // dx = weight / std * (d - mean of d - normalised x * mean of (d * normalised x))
    for (int64_t c = 0; c < channels; c++) {
      weight_gradient[c] += float(scaled[c] * inverse[c]);
      bias_gradient[c] += float(plain[c]);
      slope[c] = float(-double(factor[c]) * inverse[c] * inverse[c] * scaled[c] / rows);
      constant[c] = float(-double(factor[c]) * plain[c] / rows);
    }
    auto slopes = repeated(slope.data(), channels, fold), constants = repeated(constant.data(), channels, fold);
    const float *s = slopes.data(), *k = constants.data();
    for (int64_t row = 0; row < tall; row++) {
      const T *dy = gradient + row * length, *values = x + row * length;
      T* __restrict place = out + row * length;
      for (int64_t i = 0; i < length; i++) {
        float value = load(values[i]) - m[i];
        float d = passed(load(dy[i]), value * f[i] + b[i]);
        store(place + i, f[i] * d + s[i] * value + k[i]);
      }
    }
    gradient += rows * channels, x += rows * channels, out += rows * channels;
  }
}

// For every channel, sixteen at a time where there are as many: so few need no longer vectors than they fill.
template <typename F>
inline void channelwise(int64_t channels, F f) {
  int64_t i = 0;
  for (; i + 16 <= channels; i += 16) {
#pragma GCC ivdep
    for (int64_t j = 0; j < 16; j++) f(i + j);
  }
  for (; i < channels; i++) f(i);
}

// In what follows `width` is the pooled map's, and a window's corners are numbered 0 1 / 2 3.
template <typename T>
void pool(const T* x, int64_t rows, int64_t width, int64_t channels, T* y, uint8_t* switches) {
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t column = 0; column < width; column++) {
      const T* __restrict a = x + (4 * row * width + 2 * column) * channels;
      const T *__restrict b = a + channels, *__restrict c = a + 2 * width * channels, *__restrict d = c + channels;
      T* __restrict best = y;
      uint8_t* __restrict place = switches;
      channelwise(channels, [=](int64_t i) {
        float v = load(a[i]), w = load(b[i]);
        uint32_t at = 0;
        bool more = (w > v) | (w != w);  // a NaN wins, as in torch
        v = more ? w : v, at = more ? 1 : at, w = load(c[i]);
        more = (w > v) | (w != w);
        v = more ? w : v, at = more ? 2 : at, w = load(d[i]);
        more = (w > v) | (w != w);
        v = more ? w : v, at = more ? 3 : at;
        store(best + i, v);
        place[i] = uint8_t(at);
      });
      y += channels, switches += channels;
    }
  }
}

// Integers of a value's size, since values are moved alone.
template <typename T>
void place(const T* x, const uint8_t* switches, int64_t rows, int64_t width, int64_t channels, T* y) {
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t column = 0; column < width; column++) {
      T* __restrict a = y + (4 * row * width + 2 * column) * channels;
      T *__restrict b = a + channels, *__restrict c = a + 2 * width * channels, *__restrict d = c + channels;
      const T* __restrict from = x;
      const uint8_t* __restrict at = switches;
      channelwise(channels, [=](int64_t i) {
        T value = from[i];
        uint8_t corner = at[i];
        a[i] = corner == 0 ? value : T(0);
        b[i] = corner == 1 ? value : T(0);
        c[i] = corner == 2 ? value : T(0);
        d[i] = corner == 3 ? value : T(0);
      });
      x += channels, switches += channels;
    }
  }
}

template <typename T>
void pick(const T* x, const uint8_t* switches, int64_t rows, int64_t width, int64_t channels, T* y) {
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t column = 0; column < width; column++) {
      const T* __restrict a = x + (4 * row * width + 2 * column) * channels;
      const T *__restrict b = a + channels, *__restrict c = a + 2 * width * channels, *__restrict d = c + channels;
      T* __restrict to = y;
      const uint8_t* __restrict at = switches;
      channelwise(channels, [=](int64_t i) {
        uint8_t corner = at[i];
        T upper = corner == 1 ? b[i] : a[i], lower = corner == 3 ? d[i] : c[i];
        to[i] = corner < 2 ? upper : lower;
      });
      y += channels, switches += channels;
    }
  }
}

// e^x of x <= 0, to 2e-7, in a form that compilers turn into vector instructions.
inline float exponential(float x) {
  x = x < -87 ? -87 : x;
  float whole = (x * 1.44269504f + 12582912.f) - 12582912.f;
  float rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  float sum = 1.9875691500e-4f;
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1;
  uint32_t bits = uint32_t(int32_t(whole) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return sum * power;
}

constexpr int64_t PIXELS = 64;  // of a block, whose logits are turned to lie class by class
constexpr uint8_t VOID = 255;

struct Block {
  std::vector<float> values;
  float most[PIXELS], total[PIXELS];
  explicit Block(int64_t classes) : values(classes * PIXELS) {}

  // exp(logit - largest logit) into `values`, their sums into `total`
  template <typename T>
  void fill(const T* logits, int64_t count, int64_t classes) {
    for (int64_t p = 0; p < PIXELS; p++) {
      const T* pixel = logits + (p < count ? p : 0) * classes;
      for (int64_t c = 0; c < classes; c++) values[c * PIXELS + p] = load(pixel[c]);
    }
    for (int64_t p = 0; p < PIXELS; p++) most[p] = values[p], total[p] = 0;
    for (int64_t c = 1; c < classes; c++)
      for (int64_t p = 0; p < PIXELS; p++) {
        float value = values[c * PIXELS + p];
        most[p] = value > most[p] ? value : most[p];
      }
    for (int64_t c = 0; c < classes; c++)
      for (int64_t p = 0; p < PIXELS; p++) {
        float value = exponential(values[c * PIXELS + p] - most[p]);
        values[c * PIXELS + p] = value;
        total[p] += value;
      }
  }
};

template <typename T>
void crop_losses(const T* logits, const uint8_t* labels, int64_t images, int64_t pixels, int64_t classes,
                  float* losses) {
  Block block(classes);
  for (int64_t n = 0; n < images; n++, logits += pixels * classes, labels += pixels) {
    double sum = 0;
    for (int64_t begin = 0; begin < pixels; begin += PIXELS) {
      int64_t count = pixels - begin < PIXELS ? pixels - begin : PIXELS;
      block.fill(logits + begin * classes, count, classes);
      for (int64_t p = 0; p < count; p++) {
        uint8_t label = labels[begin + p];
        if (label != VOID) sum += std::log(block.total[p]) + (block.most[p] - load(logits[(begin + p) * classes + label]));
      }
    }
    losses[n] = float(sum);
  }
}

template <typename T>
void crop_losses_backward(const T* logits, const uint8_t* labels, const float* factors, int64_t images,
                           int64_t pixels, int64_t classes, T* out) {
  Block block(classes);
  for (int64_t n = 0; n < images; n++, logits += pixels * classes, labels += pixels, out += pixels * classes) {
    for (int64_t begin = 0; begin < pixels; begin += PIXELS) {
      int64_t count = pixels - begin < PIXELS ? pixels - begin : PIXELS;
      block.fill(logits + begin * classes, count, classes);
      float scale[PIXELS];
      for (int64_t p = 0; p < PIXELS; p++) scale[p] = factors[n] / block.total[p];
      for (int64_t c = 0; c < classes; c++)
        for (int64_t p = 0; p < PIXELS; p++) block.values[c * PIXELS + p] *= scale[p];
      for (int64_t p = 0; p < count; p++) {
        uint8_t label = labels[begin + p];
        T* place = out + (begin + p) * classes;
        for (int64_t c = 0; c < classes; c++) {
          float value = block.values[c * PIXELS + p] - (c == label ? factors[n] : 0);
          store(place + c, label == VOID ? 0 : value);
        }
      }
    }
  }
}

}  // namespace

#define EXPORT(T, Bits, suffix)                                                                                       \
  extern "C" {                                                                                                        \
  void batch_norm_relu_##suffix(const T* x, const float* weight, const float* bias, float eps, int64_t groups,        \
                                int64_t rows, int64_t channels, T* y, float* statistics) {                            \
    batch_norm_relu(x, weight, bias, eps, groups, rows, channels, y, statistics);                                     \
  }                                                                                                                   \
  void batch_norm_relu_backward_##suffix(const T* gradient, const T* x, const float* weight, const float* bias,       \
                                         const float* statistics, int64_t groups, int64_t rows, int64_t channels,     \
                                         T* out, float* weight_gradient, float* bias_gradient) {                      \
    batch_norm_relu_backward(gradient, x, weight, bias, statistics, groups, rows, channels, out, weight_gradient,     \
                             bias_gradient);                                                                          \
  }                                                                                                                   \
  void pool_##suffix(const T* x, int64_t rows, int64_t width, int64_t channels, T* y, uint8_t* switches) {            \
    pool(x, rows, width, channels, y, switches);                                                                      \
  }                                                                                                                   \
  void place_##suffix(const Bits* x, const uint8_t* switches, int64_t rows, int64_t width, int64_t channels,          \
                      Bits* y) {                                                                                      \
    place(x, switches, rows, width, channels, y);                                                                     \
  }                                                                                                                   \
  void pick_##suffix(const Bits* x, const uint8_t* switches, int64_t rows, int64_t width, int64_t channels,           \
                     Bits* y) {                                                                                       \
    pick(x, switches, rows, width, channels, y);                                                                      \
  }                                                                                                                   \
  void crop_losses_##suffix(const T* logits, const uint8_t* labels, int64_t images, int64_t pixels, int64_t classes,  \
                            float* losses) {                                                                          \
    crop_losses(logits, labels, images, pixels, classes, losses);                                                     \
  }                                                                                                                   \
  void crop_losses_backward_##suffix(const T* logits, const uint8_t* labels, const float* factors, int64_t images,    \
                                     int64_t pixels, int64_t classes, T* out) {                                       \
    crop_losses_backward(logits, labels, factors, images, pixels, classes, out);                                      \
  }                                                                                                                   \
  }

EXPORT(float, uint32_t, float32)
EXPORT(bf16, uint16_t, bfloat16)
