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

constexpr int64_t at_once = 4;  // symbols; a sum is then read and written once for all of them

// Asks for a row that is read soon: in spans of wider arrays rows lie too far apart for a processor to
// guess the next one.
template <class R> static inline void fetch(int64_t units, const R* from) {
  for (int64_t i = 0; i < units; i += 64 / int64_t(sizeof(R))) __builtin_prefetch(from + i);
}

// The rows of the next symbols.
template <class R> static inline void fetch(int64_t units, const R* from, int64_t symbol) {
  for (int64_t k = 0; k < at_once; k++) fetch(units, from + k * symbol);
}

// Adds `some` symbols of one sample, first to last, whose rows lie `symbol` numbers apart.
template <int some, class R>
static inline void absolute_rows(int64_t units, const R* from, int64_t symbol, R* __restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < units; i++) {
    R sum = to[i];
    for (int k = 0; k < some; k++) sum += absolute(from[k * symbol + i]);
    to[i] = sum;
  }
}

// sums: (batch, units), which are added to; numbers from one row to the next.
template <class R>
static void add_absolute(int64_t n, int64_t batch, int64_t units, const Coefficients<R>& x, R* sums, int64_t row) {
  int64_t k = 0;
  for (; k + at_once <= n; k += at_once)
    for (int64_t b = 0; b < batch; b++) absolute_rows<at_once>(units, x.at(k, b), x.symbol, sums + b * row);
  for (; k < n; k++)
    for (int64_t b = 0; b < batch; b++) absolute_rows<1>(units, x.at(k, b), x.symbol, sums + b * row);
}

// The same of |u + v| and |u - v|, with u = s x and v = t y.
template <int some, class R>
static inline void pair_rows(int64_t units, const R* x, int64_t symbol_x, const R* y, int64_t symbol_y,
                             const R* __restrict s, const R* __restrict t, R* __restrict plus, R* __restrict minus) {
#pragma omp simd
  for (int64_t i = 0; i < units; i++) {
    R sum = plus[i], difference = minus[i];
    for (int k = 0; k < some; k++) {
      R u = x[k * symbol_x + i] * s[i], v = y[k * symbol_y + i] * t[i];
      sum += absolute(u + v), difference += absolute(u - v);
    }
    plus[i] = sum, minus[i] = difference;
  }
}

// Sums of |s x + t y| and of |s x - t y| over the first axis; everything else is (batch, units).
template <class R>
static void add_pairs(int64_t n, int64_t batch, int64_t units, const Coefficients<R>& x, const Coefficients<R>& y,
                      const R* on_x, const R* on_y, R* plus, R* minus) {
  for (int64_t k = 0, some = 0; k < n; k += some) {
    some = k + at_once <= n ? at_once : 1;
    for (int64_t b = 0; b < batch; b++) {
      int64_t at = b * units;
      auto rows = some > 1 ? pair_rows<at_once, R> : pair_rows<1, R>;
      if (k + 2 * at_once <= n) {
        fetch(units, x.at(k + at_once, b), x.symbol);
        fetch(units, y.at(k + at_once, b), y.symbol);
      }
      rows(units, x.at(k, b), x.symbol, y.at(k, b), y.symbol, on_x + at, on_y + at, plus + at, minus + at);
    }
  }
}

#define SUMS(R, suffix)                                                                                             \
  EXPORT void absolute_##suffix(int64_t n, int64_t batch, int64_t units, const R* x, int64_t symbol, int64_t sample, \
                                R* sums) {                                                                          \
    add_absolute<R>(n, batch, units, {x, symbol, sample}, sums, units);                                                 \
  }                                                                                                                 \
  EXPORT void pairs_##suffix(int64_t n, int64_t batch, int64_t units, const R* x, int64_t symbol_x,                 \
                             int64_t sample_x, const R* y, int64_t symbol_y, int64_t sample_y, const R* on_x,       \
                             const R* on_y, R* plus, R* minus) {                                                    \
    add_pairs<R>(n, batch, units, {x, symbol_x, sample_x}, {y, symbol_y, sample_y}, on_x, on_y, plus, minus);       \
  }
