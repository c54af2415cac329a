// Sums of absolute values over all symbols of affine forms, one after another in every unit.
#pragma once
#include <stdint.h>

// Coefficients (n, batch, units): numbers from one symbol, and from one sample, to the next.
template <class R> struct Coefficients {
  const R* data;
  int64_t symbol, sample;

  const R* at(int64_t k, int64_t b) const { return data + k * symbol + b * sample; }
};

template <class R> static R absolute(R x) { return x < 0 ? -x : x; }

// sums: (batch, units), which are added to.
template <class R>
static void add_absolute(int64_t n, int64_t batch, int64_t units, const Coefficients<R>& x, R* sums) {
  for (int64_t k = 0; k < n; k++) {
    for (int64_t b = 0; b < batch; b++) {
      const R* __restrict from = x.at(k, b);
      R* __restrict to = sums + b * units;
#pragma omp simd
      for (int64_t i = 0; i < units; i++) to[i] += absolute(from[i]);
    }
  }
}

// plus and minus of on_x x + on_y y and on_x x - on_y y; the scales are (batch, units).
template <class R>
static void add_pairs(int64_t n, int64_t batch, int64_t units, const Coefficients<R>& x, const Coefficients<R>& y,
                      const R* on_x, const R* on_y, R* plus, R* minus) {
  for (int64_t k = 0; k < n; k++) {
    for (int64_t b = 0; b < batch; b++) {
      const R *__restrict one = x.at(k, b), *__restrict other = y.at(k, b);
      const R *__restrict s = on_x + b * units, *__restrict t = on_y + b * units;
      R *__restrict sums = plus + b * units, *__restrict differences = minus + b * units;
#pragma omp simd
      for (int64_t i = 0; i < units; i++) {
        R u = one[i] * s[i], v = other[i] * t[i];
        sums[i] += absolute(u + v);
        differences[i] += absolute(u - v);
      }
    }
  }
}

#define SUMS(R, suffix)                                                                                             \
  EXPORT void absolute_##suffix(int64_t n, int64_t batch, int64_t units, const R* x, int64_t symbol, int64_t sample, \
                                R* sums) {                                                                          \
    add_absolute<R>(n, batch, units, {x, symbol, sample}, sums);                                                    \
  }                                                                                                                 \
  EXPORT void pairs_##suffix(int64_t n, int64_t batch, int64_t units, const R* x, int64_t symbol_x,                 \
                             int64_t sample_x, const R* y, int64_t symbol_y, int64_t sample_y, const R* on_x,       \
                             const R* on_y, R* plus, R* minus) {                                                    \
    add_pairs<R>(n, batch, units, {x, symbol_x, sample_x}, {y, symbol_y, sample_y}, on_x, on_y, plus, minus);       \
  }
