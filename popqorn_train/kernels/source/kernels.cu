// The same for a GPU: one thread has one unit, and 32 of them one row of slopes.
//
// Sums are added up in an order that depends on the length alone, as on a processor.
#include <stdint.h>

namespace loops {  // which hides CUDA's min, max, abs, tanh and log
#include "units.h"

#ifndef WARP  // a test that has no GPU has no warps either
#define WARP 32
#endif
constexpr int warp = WARP, tile = 32, most = 16;

// Addresses of the first numbers, by value.
template <class R> struct Arrays {
  const R* at[most];
};

template <class R> struct Results {
  R* at[most];
};

INLINE int64_t number() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

template <class V>
static void planes(int64_t n, bool curved, bool octagon, const Choice<V>& choice, const Arrays<V>& ends, V* found) {
  int64_t i = number();
  if (i >= n) return;
  V own[8] = {}, parts[6];
  for (int k = 0; k < (octagon ? 8 : 4); k++) own[k] = ends.at[k][i];
  enclose(own, curved, octagon, choice, parts);
  for (int k = 0; k < 6; k++) found[k * n + i] = parts[k];
}

template <class V> static void strips(int64_t n, bool curved, const Arrays<V>& ends, V* found) {
  int64_t i = number();
  if (i >= n) return;
  V own[8], parts[4];
  for (int k = 0; k < 8; k++) own[k] = ends.at[k][i];
  narrow(own, curved, parts);
  for (int k = 0; k < 4; k++) found[k * n + i] = parts[k];
}

template <class V>
static void of_planes(int64_t n, bool curved, V share, const Arrays<V>& ends, const V* planes, V* found) {
  int64_t i = number();
  if (i >= n) return;
  V own[4], worth[6], parts[4];
  for (int k = 0; k < 6; k++) worth[k] = planes[k * n + i];
  for (int k = 0; k < 4; k++) own[k] = ends.at[k][i];
  gradient(own, curved, share, worth, parts);
  for (int k = 0; k < 4; k++) found[k * n + i] = parts[k];
}

// How rows of slopes and the sides of a nonlinearity lie, see rows.h.
struct Layout {
  int64_t batch, rows, n, arguments, step, sample, row;
};

template <class R> INLINE R sum_of_warp(R sum) {
  for (int away = warp / 2; away > 0; away /= 2) sum += __shfl_xor_sync(~0u, sum, away);
  return sum;
}

template <class R> INLINE R positive_part(R x) { return x > 0 ? x : R(0); }

// A warp has `tile` rows of one sample, and reads sides that these share once. `fixed` is the number of
// arguments, or 0 where it is not known beforehand.
template <int fixed, class R>
static void substitute(const Layout& at, const R* slopes, const Arrays<R>& lower, const Arrays<R>& upper,
                       const Results<R>& found, R* constants) {
  const int tiles = (int(at.rows) + tile - 1) / tile, work = int(number() / warp), lane = threadIdx.x % warp;
  const int b = work / tiles, first = work % tiles * tile, arguments = fixed ? fixed : int(at.arguments);
  if (b >= at.batch) return;
  R sums[tile] = {}, low[fixed ? fixed + 1 : most], high[fixed ? fixed + 1 : most];
  for (int i = lane; i < at.n; i += warp) {
    R own[tile];  // read before anything is written, so that no read waits for another one
#pragma unroll
    for (int r = 0; r < tile; r++) own[r] = first + r < at.rows ? slopes[b * at.step + (first + r) * at.n + i] : R(0);
#pragma unroll
    for (int r = 0; r < tile; r++) {
      int64_t k = first + r, row = b * at.rows + k, side = b * at.sample + k * at.row + i;
      if (k >= at.rows) break;
      if (r == 0 || at.row)
        for (int j = 0; j <= arguments; j++) low[j] = lower.at[j][side], high[j] = upper.at[j][side];
      R positive = positive_part(own[r]), negative = own[r] - positive;
      for (int j = 0; j < arguments; j++) found.at[j][row * at.n + i] = positive * low[j] + negative * high[j];
      sums[r] += positive * low[arguments] + negative * high[arguments];
    }
  }
#pragma unroll
  for (int r = 0; r < tile; r++) {
    R sum = sum_of_warp(sums[r]);
    if (lane == 0 && first + r < at.rows) constants[b * at.rows + first + r] = sum;
  }
}

// What the slopes are worth, one number a thread.
template <class R>
static void of_slopes(const Layout& at, const R* slopes, const Arrays<R>& lower, const Arrays<R>& upper,
                      const Arrays<R>& worths, const R* constants, R* of_slope) {
  int64_t here = number(), row = here / at.n, i = here % at.n, b = row / at.rows, k = row % at.rows;
  if (b >= at.batch) return;
  bool up = slopes[b * at.step + k * at.n + i] > 0;
  int64_t from = b * at.sample + k * at.row + i;
  R sum = constants[row] * (up ? lower : upper).at[at.arguments][from];
  for (int j = 0; j < at.arguments; j++) sum += worths.at[j][here] * (up ? lower : upper).at[j][from];
  of_slope[here] = sum;
}

// What one number of the sides is worth: the sum over all samples and rows that share it.
template <class R>
static void of_sides(const Layout& at, const R* slopes, const Arrays<R>& worths, const R* constants,
                     const Results<R>& found) {
  int64_t samples = at.sample ? at.batch : 1, rows = at.row ? at.rows : 1;
  int64_t here = number(), i = here % at.n, k0 = here / at.n % rows, b0 = here / at.n / rows;
  if (b0 >= samples) return;
  for (int j = 0; j <= at.arguments; j++) {
    R low = 0, high = 0;
    for (int64_t b = b0; b < (at.sample ? b0 + 1 : at.batch); b++) {
      for (int64_t k = k0; k < (at.row ? k0 + 1 : at.rows); k++) {
        int64_t row = b * at.rows + k;
        R own = slopes[b * at.step + k * at.n + i], positive = positive_part(own);
        R worth = j < at.arguments ? worths.at[j][row * at.n + i] : constants[row];
        low += worth * positive, high += worth * (own - positive);
      }
    }
    found.at[j][here] = low, found.at[at.arguments + 1 + j][here] = high;
  }
}

template <class R>
static void minimum(const Layout& at, const R* slopes, const R* center, const R* half, R* least) {
  int64_t row = number() / warp, b = row / at.rows, k = row % at.rows;
  if (b >= at.batch) return;
  const R *slope = slopes + b * at.step + k * at.n, *c = center + b * at.sample, *h = half + b * at.sample;
  R middle = 0, fall = 0;
  for (int64_t i = threadIdx.x % warp; i < at.n; i += warp) middle += slope[i] * c[i], fall += abs(slope[i]) * h[i];
  middle = sum_of_warp(middle), fall = sum_of_warp(fall);
  if (threadIdx.x % warp == 0) least[row] = middle - fall;
}
}  // namespace loops

#define KERNEL extern "C" __global__ void
#define KERNELS(R, suffix)                                                                                          \
  KERNEL planes_##suffix(int64_t n, int64_t curved, int64_t octagon, int64_t tilted, int64_t steps, double share,   \
                         double shift_x, double shift_y, loops::Arrays<R> ends, R* found) {                         \
    loops::Choice<R> choice = {tilted, steps, R(share), {R(shift_x), R(shift_y)}};                                  \
    loops::planes<R>(n, curved, octagon, choice, ends, found);                                                      \
  }                                                                                                                 \
  KERNEL strips_##suffix(int64_t n, int64_t curved, loops::Arrays<R> ends, R* found) {                              \
    loops::strips<R>(n, curved, ends, found);                                                                       \
  }                                                                                                                 \
  KERNEL gradient_##suffix(int64_t n, int64_t curved, double share, loops::Arrays<R> ends, const R* planes,         \
                           R* found) {                                                                              \
    loops::of_planes<R>(n, curved, R(share), ends, planes, found);                                                  \
  }                                                                                                                 \
  KERNEL function_##suffix(int64_t which, int64_t n, const R* x, R* found) {                                        \
    int64_t i = loops::number();                                                                                    \
    if (i < n) found[i] = loops::function(which, x[i]);                                                             \
  }                                                                                                                 \
  KERNEL substitute_##suffix(int64_t batch, int64_t rows, int64_t n, int64_t arguments, const R* slope,             \
                             int64_t step, loops::Arrays<R> lower, loops::Arrays<R> upper, int64_t sample,          \
                             int64_t row, loops::Results<R> found, R* constants) {                                  \
    loops::Layout at = {batch, rows, n, arguments, step, sample, row};                                              \
    if (arguments == 1) loops::substitute<1, R>(at, slope, lower, upper, found, constants);                         \
    else if (arguments == 2) loops::substitute<2, R>(at, slope, lower, upper, found, constants);                    \
    else loops::substitute<0, R>(at, slope, lower, upper, found, constants);                                        \
  }                                                                                                                 \
  KERNEL slopes_gradient_##suffix(int64_t batch, int64_t rows, int64_t n, int64_t arguments, const R* slope,        \
                                  int64_t step, loops::Arrays<R> lower, loops::Arrays<R> upper, int64_t sample,     \
                                  int64_t row, loops::Arrays<R> worths, const R* constants, R* of_slope,            \
                                  loops::Results<R>) {                                                              \
    loops::Layout at = {batch, rows, n, arguments, step, sample, row};                                              \
    loops::of_slopes<R>(at, slope, lower, upper, worths, constants, of_slope);                                      \
  }                                                                                                                 \
  KERNEL sides_gradient_##suffix(int64_t batch, int64_t rows, int64_t n, int64_t arguments, const R* slope,         \
                                 int64_t step, loops::Arrays<R>, loops::Arrays<R>, int64_t sample, int64_t row,     \
                                 loops::Arrays<R> worths, const R* constants, R*, loops::Results<R> of_sides) {     \
    loops::of_sides<R>({batch, rows, n, arguments, step, sample, row}, slope, worths, constants, of_sides);         \
  }                                                                                                                 \
  KERNEL minimum_##suffix(int64_t batch, int64_t rows, int64_t n, const R* slope, int64_t step, const R* center,    \
                          const R* half, int64_t stride, R* least) {                                                \
    loops::minimum<R>({batch, rows, n, 0, step, stride, 0}, slope, center, half, least);                            \
  }

KERNELS(float, float)
KERNELS(double, double)
