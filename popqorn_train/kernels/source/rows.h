// One pass over rows of slopes: the step over a nonlinearity, and the least value over a box.
//
// Every row is summed on its own, in an order that depends on its length alone.
#pragma once
#include <stdint.h>

// The sides of a nonlinearity are one array for every argument and one for the intercept.
template <class R> struct Sides {
  const R* const* lower;
  const R* const* upper;
  int64_t sample, row;  // numbers from one sample, and from one row, to the next; 0: the same
};

template <class R>
static void side(int64_t n, const R* __restrict slope, const R* __restrict low, const R* __restrict high, R* __restrict found) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    R positive = slope[i] > 0 ? slope[i] : R(0), negative = slope[i] - positive;
    found[i] = positive * low[i] + negative * high[i];
  }
}

template <class R>
static R constant(int64_t n, const R* __restrict slope, const R* __restrict low, const R* __restrict high) {
  R sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    R positive = slope[i] > 0 ? slope[i] : R(0), negative = slope[i] - positive;
    sum += positive * low[i] + negative * high[i];
  }
  return sum;
}

// slope: (batch, rows, n), the same for all samples where `step` is 0; found: like it, one for every
// argument; constants: (batch, rows).
template <class R>
static void substitute(int64_t batch, int64_t rows, int64_t n, int64_t arguments, const R* slope, int64_t step,
                       const Sides<R>& sides, R* const* found, R* constants) {
  for (int64_t b = 0; b < batch; b++) {
    for (int64_t k = 0; k < rows; k++) {
      const R* own = slope + b * step + k * n;
      int64_t from = b * sides.sample + k * sides.row, to = (b * rows + k) * n;
      for (int64_t j = 0; j < arguments; j++) side(n, own, sides.lower[j] + from, sides.upper[j] + from, found[j] + to);
      constants[b * rows + k] = constant(n, own, sides.lower[arguments] + from, sides.upper[arguments] + from);
    }
  }
}

// Adds the gradient of one argument, of which a row is worth `worth`, or of the constant, which is worth
// one number.
template <bool one, class R>
static void add_gradient(int64_t n, const R* __restrict slope, const R* __restrict low, const R* __restrict high,
                         const R* __restrict worth, R* __restrict of_slope, R* __restrict of_low, R* __restrict of_high) {
  const R constant = *worth;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    R own = one ? constant : worth[i], positive = slope[i] > 0 ? slope[i] : R(0);
    of_slope[i] += own * (slope[i] > 0 ? low[i] : high[i]);
    of_low[i] += own * positive;
    of_high[i] += own * (slope[i] - positive);
  }
}

// The gradient of `substitute`: worths of every argument and of the constants, laid out like these;
// of_slope: (batch, rows, n); of_sides: lower ones, then upper ones, like the sides. All start at 0.
template <class R>
static void gradient_of_rows(int64_t batch, int64_t rows, int64_t n, int64_t arguments, const R* slope, int64_t step,
                             const Sides<R>& sides, const R* const* worths, const R* constants, R* of_slope,
                             R* const* of_sides) {
  for (int64_t b = 0; b < batch; b++) {
    for (int64_t k = 0; k < rows; k++) {
      int64_t from = b * sides.sample + k * sides.row, row = b * rows + k;
      const R* own = slope + b * step + k * n;
      for (int64_t j = 0; j <= arguments; j++) {
        const R *low = sides.lower[j] + from, *high = sides.upper[j] + from;
        R *of_low = of_sides[j] + from, *of_high = of_sides[arguments + 1 + j] + from, *to = of_slope + row * n;
        if (j < arguments) add_gradient<false>(n, own, low, high, worths[j] + row * n, to, of_low, of_high);
        else add_gradient<true>(n, own, low, high, constants + row, to, of_low, of_high);
      }
    }
  }
}

// The gradient of `substitute` in the slopes alone.
template <class R>
static void gradient_of_slopes(int64_t batch, int64_t rows, int64_t n, int64_t arguments, const R* slope, int64_t step,
                               const Sides<R>& sides, const R* const* worths, const R* constants, R* of_slope) {
  for (int64_t row = 0; row < batch * rows; row++) {
    int64_t b = row / rows, k = row % rows, from = b * sides.sample + k * sides.row;
    for (int64_t j = arguments; j >= 0; j--) {
      const R *own = slope + b * step + k * n, *low = sides.lower[j] + from, *high = sides.upper[j] + from;
      const R constant = constants[row], *worth = j < arguments ? worths[j] + row * n : low;
      R* to = of_slope + row * n;
#pragma omp simd
      for (int64_t i = 0; i < n; i++) {
        R side = own[i] > 0 ? low[i] : high[i];
        to[i] = j < arguments ? to[i] + worth[i] * side : constant * side;
      }
    }
  }
}

// The least value of slope . x where x lies within `half` of `center`, which have `stride` numbers a
// sample, of which the first n are meant.
template <class R>
static void concretise(int64_t batch, int64_t rows, int64_t n, const R* slope, int64_t step, const R* __restrict center,
                       const R* __restrict half, int64_t stride, R* __restrict least) {
  for (int64_t b = 0; b < batch; b++) {
    const R *c = center + b * stride, *h = half + b * stride;
    for (int64_t k = 0; k < rows; k++) {
      const R* own = slope + b * step + k * n;
      R middle = 0, fall = 0;
#pragma omp simd reduction(+ : middle, fall)
      for (int64_t i = 0; i < n; i++) {
        middle += own[i] * c[i];
        fall += (own[i] < 0 ? -own[i] : own[i]) * h[i];
      }
      least[b * rows + k] = middle - fall;
    }
  }
}

// Its gradient in the slopes: what the row is worth, times the place of the least value.
template <class R>
static void place(int64_t batch, int64_t rows, int64_t n, const R* slope, int64_t step, const R* center, const R* half,
                  int64_t stride, const R* worth, R* of_slope) {
  for (int64_t row = 0; row < batch * rows; row++) {
    int64_t b = row / rows;
    const R *own = slope + b * step + row % rows * n, *c = center + b * stride, *h = half + b * stride;
    const R size = worth[row];
    R* to = of_slope + row * n;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] = size * (c[i] - (own[i] > 0 ? h[i] : (own[i] < 0 ? -h[i] : R(0))));
  }
}

#define ROWS(R, suffix)                                                                                            \
  EXPORT void substitute_##suffix(int64_t batch, int64_t rows, int64_t n, int64_t arguments, const R* slope,       \
                                  int64_t step, const R* const* lower, const R* const* upper, int64_t sample,      \
                                  int64_t row, R* const* found, R* constants) {                                    \
    Sides<R> sides = {lower, upper, sample, row};                                                                  \
    substitute<R>(batch, rows, n, arguments, slope, step, sides, found, constants);                                \
  }                                                                                                                \
  EXPORT void rows_gradient_##suffix(int64_t batch, int64_t rows, int64_t n, int64_t arguments, const R* slope,    \
                                     int64_t step, const R* const* lower, const R* const* upper, int64_t sample,   \
                                     int64_t row, const R* const* worths, const R* constants, R* of_slope,         \
                                     R* const* of_sides) {                                                         \
    Sides<R> sides = {lower, upper, sample, row};                                                                  \
    gradient_of_rows<R>(batch, rows, n, arguments, slope, step, sides, worths, constants, of_slope, of_sides);     \
  }                                                                                                                \
  EXPORT void slopes_gradient_##suffix(int64_t batch, int64_t rows, int64_t n, int64_t arguments, const R* slope,  \
                                       int64_t step, const R* const* lower, const R* const* upper, int64_t sample, \
                                       int64_t row, const R* const* worths, const R* constants, R* of_slope,       \
                                       R* const*) {                                                                \
    Sides<R> sides = {lower, upper, sample, row};                                                                  \
    gradient_of_slopes<R>(batch, rows, n, arguments, slope, step, sides, worths, constants, of_slope);             \
  }                                                                                                                \
  EXPORT void least_gradient_##suffix(int64_t batch, int64_t rows, int64_t n, const R* slope, int64_t step,        \
                                      const R* center, const R* half, int64_t stride, const R* worth,              \
                                      R* of_slope) {                                                               \
    place<R>(batch, rows, n, slope, step, center, half, stride, worth, of_slope);                                  \
  }                                                                                                                \
  EXPORT void minimum_##suffix(int64_t batch, int64_t rows, int64_t n, const R* slope, int64_t step,               \
                               const R* center, const R* half, int64_t stride, R* least) {                         \
    concretise<R>(batch, rows, n, slope, step, center, half, stride, least);                                       \
  }
