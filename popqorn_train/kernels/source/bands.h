// Bands of octagons from two affine forms whose input moves in a box, with their gradients: see
// bounds/symbols.py.
#pragma once
#include "forms.h"

// Symbols that both have; of no width behind all of them if there are none.
static inline Span shared(Span x, Span y) {
  int64_t start = greater(x.start, y.start), stop = lesser(x.stop, y.stop), end = greater(x.stop, y.stop);
  return start < stop ? Span{start, stop} : Span{end, end};
}

// The two arguments of products on a box, unit by unit.
template <class R> struct Pair {
  int64_t batch, units;
  R rounding, sign[2];
  const R* const* ends;     // lx, ux, ly, uy
  const R* const* centers;  // of x, of y
  const R* const* owns;     // likewise; each may be null
  Block<R> blocks[4];       // inputs and noise of x, then of y

  int64_t size() const { return batch * units; }
};

// One argument on the square: value = on * center - shift.
template <class R> struct Scaled {
  R middle, half, on, shift;
  bool wide;  // whether the half width is that of the box
};

template <class R> static inline Scaled<R> scaled(R low, R high, R sign) {
  R middle = (low + high) / 2, reach = greater(high - middle, middle - low);
  R least = 8 * epsilon<R>() * (1 + absolute(middle)), half = greater(reach, least);
  return {middle, half, sign / half, middle / half, reach >= least};
}

template <class R> static inline bool is_flat(R low, R high) {
  return high - low <= 128 * epsilon<R>() * (1 + absolute(low + high));
}

// Symbols of one block alone: both sums get the same.
template <class R>
static void add_alone(const Pair<R>& on, const Block<R>& x, Span span, const R* scales, R* plus, R* minus) {
  for (int64_t k = span.start; k < span.stop; k++) {
    for (int64_t b = 0; b < on.batch; b++) {
      const R *__restrict from = x.at(k, b), *__restrict scale = scales + b * on.units;
      R *__restrict sums = plus + b * on.units, *__restrict differences = minus + b * on.units;
#pragma omp simd
      for (int64_t i = 0; i < on.units; i++) {
        R size = absolute(from[i] * scale[i]);
        sums[i] += size, differences[i] += size;
      }
    }
  }
}

// Sums over all symbols of |s x + t y| and of |s x - t y|: those before and behind the ones that both
// have, and these.
template <class R>
static void add_pair(const Pair<R>& on, int part, const R* s, const R* t, R* plus, R* minus) {
  const Block<R>&x = on.blocks[part], &y = on.blocks[2 + part];
  Span in_x = x.symbols(), in_y = y.symbols(), common = shared(in_x, in_y);
  add_alone(on, x, {in_x.start, lesser(in_x.stop, common.start)}, s, plus, minus);
  add_alone(on, y, {in_y.start, lesser(in_y.stop, common.start)}, t, plus, minus);
  if (common.start < common.stop)
    add_pairs<R>(common.stop - common.start, on.batch, on.units, x.from(common.start), y.from(common.start), s, t, plus,
                 minus);
  add_alone(on, x, {greater(in_x.start, common.stop), in_x.stop}, s, plus, minus);
  add_alone(on, y, {greater(in_y.start, common.stop), in_y.stop}, t, plus, minus);
}

// What the bands of one unit are made of.
template <class R> struct Ends {
  R sum, difference, wide, plus, minus;
};

template <class R> static inline Ends<R> ends_at(const Pair<R>& on, int64_t i, R plus, R minus) {
  R lx = on.ends[0][i], ux = on.ends[1][i], ly = on.ends[2][i], uy = on.ends[3][i];
  Scaled<R> x = scaled(lx, ux, on.sign[0]), y = scaled(ly, uy, on.sign[1]);
  R own = (on.owns[0] ? on.owns[0][i] * absolute(x.on) : R(0)) + (on.owns[1] ? on.owns[1][i] * absolute(y.on) : R(0));
  R p = on.centers[0][i] * x.on - x.shift, q = on.centers[1][i] * y.on - y.shift;
  R size = greater(absolute(lx), absolute(ux)) / x.half + greater(absolute(ly), absolute(uy)) / y.half + 2;
  R wide = own + 16 * epsilon<R>() * size;
  return {p + q, p - q, wide, plus + on.rounding * plus, minus + on.rounding * minus};
}

template <class R> static inline bool uncut(const Pair<R>& on, int64_t i) {
  return is_flat(on.ends[0][i], on.ends[1][i]) || is_flat(on.ends[2][i], on.ends[3][i]);
}

// A number that is none gives the whole square.
template <class R> static inline R low_end(R x) { return x >= -2 ? (x < 2 ? x : R(2)) : R(-2); }
template <class R> static inline R high_end(R x) { return x <= 2 ? (x > -2 ? x : R(-2)) : R(2); }

// `found` are the four bands, then room for the scales.
template <class R> static void bands(const Pair<R>& on, R* found) {
  int64_t n = on.size();
  R *s = found + 4 * n, *t = found + 5 * n, *plus = found, *minus = found + n;
  for (int64_t i = 0; i < n; i++) {
    s[i] = scaled(on.ends[0][i], on.ends[1][i], on.sign[0]).on;
    t[i] = scaled(on.ends[2][i], on.ends[3][i], on.sign[1]).on;
    plus[i] = minus[i] = 0;
  }
  add_pair(on, 0, s, t, plus, minus);
  add_pair(on, 1, s, t, plus, minus);
  for (int64_t i = 0; i < n; i++) {
    Ends<R> at = ends_at(on, i, plus[i], minus[i]);
    bool whole = uncut(on, i);
    found[i] = whole ? R(-2) : low_end(at.sum - at.plus - at.wide);
    found[n + i] = whole ? R(2) : high_end(at.sum + at.plus + at.wide);
    found[2 * n + i] = whole ? R(-2) : low_end(at.difference - at.minus - at.wide);
    found[3 * n + i] = whole ? R(2) : high_end(at.difference + at.minus + at.wide);
  }
}

// What both sums are worth, unit by unit, and where the gradients of the scales are added up.
template <class R> struct Back {
  const R *s, *t, *plus, *minus;
  R *of_s, *of_t;

  Back from(int64_t at) const { return {s + at, t + at, plus + at, minus + at, of_s + at, of_t + at}; }
};

// Gradients of symbols of one block alone.
template <class R>
static void alone_back(const Pair<R>& on, const Block<R>& x, Span span, const Back<R>& back, const R* scales,
                       R* of_scales, R* of_x) {
  for (int64_t k = span.start; k < span.stop; k++) {
    for (int64_t b = 0; b < on.batch; b++) {
      int64_t at = b * on.units;
      const R *__restrict from = x.at(k, b), *__restrict scale = scales + at;
      const R *__restrict g = back.plus + at, *__restrict h = back.minus + at;
      R *__restrict of = of_x + (k - x.start) * on.size() + at, *__restrict sum = of_scales + at;
#pragma omp simd
      for (int64_t i = 0; i < on.units; i++) {
        R own = sign_of(from[i] * scale[i]) * (g[i] + h[i]);
        of[i] = own * scale[i], sum[i] += own * from[i];
      }
    }
  }
}

// Gradients of `some` symbols of one sample that both have.
template <int some, class R>
static inline void pair_rows_back(int64_t units, const R* x, int64_t symbol_x, const R* y, int64_t symbol_y,
                                  const Back<R>& on, int64_t symbol, R* of_x, R* of_y) {
  const R *__restrict s = on.s, *__restrict t = on.t, *__restrict g = on.plus, *__restrict h = on.minus;
  R *__restrict of_s = on.of_s, *__restrict of_t = on.of_t;
#pragma omp simd
  for (int64_t i = 0; i < units; i++) {
    R sum_s = of_s[i], sum_t = of_t[i];
    for (int k = 0; k < some; k++) {
      R one = x[k * symbol_x + i], other = y[k * symbol_y + i], u = one * s[i], v = other * t[i];
      R of_sum = sign_of(u + v) * g[i], of_rest = sign_of(u - v) * h[i];
      R of_u = of_sum + of_rest, of_v = of_sum - of_rest;
      of_x[k * symbol + i] = of_u * s[i], of_y[k * symbol + i] = of_v * t[i];
      sum_s += of_u * one, sum_t += of_v * other;
    }
    of_s[i] = sum_s, of_t[i] = sum_t;
  }
}

// The same of all that both have.
template <class R>
static void pairs_back(const Pair<R>& on, const Block<R>& x, const Block<R>& y, Span span, const Back<R>& back,
                       R* of_x, R* of_y) {
  for (int64_t k = span.start, some = 0; k < span.stop; k += some) {
    some = k + at_once <= span.stop ? at_once : 1;
    auto rows = some > 1 ? pair_rows_back<at_once, R> : pair_rows_back<1, R>;
    for (int64_t b = 0; b < on.batch; b++) {
      int64_t at = b * on.units, to_x = (k - x.start) * on.size() + at, to_y = (k - y.start) * on.size() + at;
      if (k + 2 * at_once <= span.stop) {
        fetch(on.units, x.at(k + at_once, b), x.symbol);
        fetch(on.units, y.at(k + at_once, b), y.symbol);
      }
      rows(on.units, x.at(k, b), x.symbol, y.at(k, b), y.symbol, back.from(at), on.size(), of_x + to_x, of_y + to_y);
    }
  }
}

// Gradients of one pair of blocks; those of the scales are added up.
template <class R>
static void pair_gradient(const Pair<R>& on, int part, const Back<R>& back, R* const* of_blocks) {
  const Block<R>&x = on.blocks[part], &y = on.blocks[2 + part];
  R *of_x = of_blocks[part], *of_y = of_blocks[2 + part];
  Span in_x = x.symbols(), in_y = y.symbols(), common = shared(in_x, in_y);
  alone_back(on, x, {in_x.start, lesser(in_x.stop, common.start)}, back, back.s, back.of_s, of_x);
  alone_back(on, y, {in_y.start, lesser(in_y.stop, common.start)}, back, back.t, back.of_t, of_y);
  pairs_back(on, x, y, common, back, of_x, of_y);
  alone_back(on, x, {greater(in_x.start, common.stop), in_x.stop}, back, back.s, back.of_s, of_x);
  alone_back(on, y, {greater(in_y.start, common.stop), in_y.stop}, back, back.t, back.of_t, of_y);
}

// What the two ends of an argument are worth, by its scale and its place.
template <class R> static inline void to_ends(const Scaled<R>& x, R of_on, R of_place, R& of_low, R& of_high) {
  R of_half = (of_place * x.shift - of_on * x.on) / x.half, of_middle = -of_place / x.half;
  R of_width = x.wide ? of_half / 2 : R(0);
  of_low = of_middle / 2 - of_width, of_high = of_middle / 2 + of_width;
}

// `worth` are the gradients of the bands, `known` what was found; `of_ends` are lx, ux, ly, uy, the
// centers of x and y and their own errors, then room for six arrays.
template <class R>
static void bands_gradient(const Pair<R>& on, const R* worth, const R* known, R* of_ends, R* const* of_blocks) {
  int64_t n = on.size();
  const R *s = known + 4 * n, *t = known + 5 * n;
  R *plus = of_ends + 8 * n, *minus = plus + n, *of_p = minus + n, *of_q = of_p + n, *of_s = of_q + n, *of_t = of_s + n;
  for (int64_t i = 0; i < n; i++) {
    R own[4];
    // On an end of the square a band stays where it is.
    for (int k = 0; k < 4; k++) own[k] = absolute(known[k * n + i]) < 2 && !uncut(on, i) ? worth[k * n + i] : R(0);
    plus[i] = own[1] - own[0], minus[i] = own[3] - own[2];
    R of_sum = own[0] + own[1], of_difference = own[2] + own[3];
    of_p[i] = of_sum + of_difference, of_q[i] = of_sum - of_difference;
    R of_own = plus[i] + minus[i];
    of_ends[4 * n + i] = of_p[i] * s[i], of_ends[5 * n + i] = of_q[i] * t[i];
    of_ends[6 * n + i] = of_own * absolute(s[i]), of_ends[7 * n + i] = of_own * absolute(t[i]);
    of_s[i] = of_p[i] * on.centers[0][i] + (on.owns[0] ? of_own * on.owns[0][i] * sign_of(s[i]) : R(0));
    of_t[i] = of_q[i] * on.centers[1][i] + (on.owns[1] ? of_own * on.owns[1][i] * sign_of(t[i]) : R(0));
  }
  Back<R> back = {s, t, plus, minus, of_s, of_t};
  for (int part = 0; part < 2; part++) pair_gradient(on, part, back, of_blocks);
  for (int64_t i = 0; i < n; i++) {
    to_ends(scaled(on.ends[0][i], on.ends[1][i], on.sign[0]), of_s[i], of_p[i], of_ends[i], of_ends[n + i]);
    to_ends(scaled(on.ends[2][i], on.ends[3][i], on.sign[1]), of_t[i], of_q[i], of_ends[2 * n + i], of_ends[3 * n + i]);
  }
}

template <class R> static Pair<R> pair(const int64_t* sizes, const double* numbers, const R* const* parts) {
  Pair<R> on = {sizes[0], sizes[1], R(numbers[0]), {R(numbers[1]), R(numbers[2])}, parts, parts + 4, parts + 6, {}};
  for (int k = 0; k < 4; k++) on.blocks[k] = block(parts[8 + k], sizes + 2 + 4 * k);
  return on;
}

#define BANDS(R, suffix)                                                                                             \
  EXPORT void bands_##suffix(const int64_t* sizes, const double* numbers, const R* const* parts, R* found) {         \
    bands<R>(pair(sizes, numbers, parts), found);                                                                    \
  }                                                                                                                  \
  EXPORT void bands_gradient_##suffix(const int64_t* sizes, const double* numbers, const R* const* parts,            \
                                      const R* worth, const R* known, R* of_ends, R* const* of_blocks) {             \
    bands_gradient<R>(pair(sizes, numbers, parts), worth, known, of_ends, of_blocks);                                \
  }
