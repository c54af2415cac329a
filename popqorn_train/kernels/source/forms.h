// Affine forms: ranges and weighted sums, with their gradients.
//
// A block is coefficients (count, batch, units) of neighbouring symbols. Every number is worked out as
// bounds/symbols.py and bounds/forms.py do it, symbol after symbol.
#pragma once
#include "sums.h"

struct Span {
  int64_t start, stop;
};

// A block, or none where data is null; numbers from one symbol, and from one sample, to the next.
template <class R> struct Block {
  const R* data;
  int64_t start, count, symbol, sample;

  const R* at(int64_t k, int64_t b) const {
    bool inside = data && k >= start && k < start + count;
    return inside ? data + (k - start) * symbol + b * sample : nullptr;
  }

  Span symbols() const { return data ? Span{start, start + count} : Span{0, 0}; }
  Coefficients<R> from(int64_t k) const { return {data + (k - start) * symbol, symbol, sample}; }
};

template <class R> static Block<R> block(const R* data, const int64_t* layout) {
  return {data, layout[0], layout[1], layout[2], layout[3]};
}

template <class R> static R epsilon();
template <> float epsilon<float>() { return 0x1p-23f; }
template <> double epsilon<double>() { return 0x1p-52; }

template <class R> static R sign_of(R x) { return x > 0 ? R(1) : (x < 0 ? R(-1) : R(0)); }
template <class R> static R greater(R x, R y) { return x > y ? x : y; }
template <class R> static R lesser(R x, R y) { return x < y ? x : y; }

// Neighbouring spans of the units of a form, and where those of a block begin in a row, or, where spans lie
// apart, in all of it.
struct Spans {
  int64_t count;
  const int64_t *widths, *places;
};

template <class R>
static void add_sizes(int64_t batch, int64_t units, const Block<R>& x, const Spans& spans, R* sums) {
  for (int64_t j = 0; x.data && j < spans.count; sums += spans.widths[j], j++)
    add_absolute<R>(x.count, batch, spans.widths[j], {x.data + spans.places[j], x.symbol, x.sample}, sums, units);
}

// Lower end, upper end and size of forms whose input moves in a box; `own` may be null.
template <class R>
static void range(int64_t batch, int64_t units, R rounding, const R* center, const R* own, const Block<R>* blocks,
                  const Spans* spans, R* found) {
  int64_t n = batch * units;
  R *lower = found, *upper = found + n, *sizes = found + 2 * n;
  for (int64_t i = 0; i < n; i++) upper[i] = own ? own[i] : R(0);
  add_sizes(batch, units, blocks[1], spans[1], upper);
  add_sizes(batch, units, blocks[0], spans[0], upper);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    R reach = upper[i] + rounding * upper[i], rest = 4 * epsilon<R>() * absolute(center[i]);
    lower[i] = center[i] - reach - rest, upper[i] = center[i] + reach + rest;
    sizes[i] = greater(absolute(lower[i]), absolute(upper[i]));
  }
}

// One row of the gradient of a range, added to what is said already; null for nothing.
template <class R>
static inline void add_signs(int64_t units, const R* __restrict from, const R* __restrict worth,
                             const R* __restrict said, R* __restrict to) {
  if (said) {
#pragma omp simd
    for (int64_t i = 0; i < units; i++) to[i] = said[i] + sign_of(from[i]) * worth[i];
  } else {
#pragma omp simd
    for (int64_t i = 0; i < units; i++) to[i] = sign_of(from[i]) * worth[i];
  }
}

// What coefficients are worth where every unit's reach is worth something, and spans are worth what `said` has,
// (count, batch, width) each; it lies in `of` as the coefficients do in x, with gaps or without.
template <class R>
static void range_gradient(int64_t batch, int64_t units, const Block<R>& x, const Spans& spans, const R* worth,
                           const R* const* said, const Block<R>& of, const int64_t* places, R* found) {
  for (int64_t j = 0, at = 0; j < spans.count; at += spans.widths[j], j++) {
    int64_t width = spans.widths[j];
    for (int64_t row = 0; row < x.count * batch; row++) {
      int64_t k = row / batch, b = row % batch;
      const R *from = x.data + k * x.symbol + b * x.sample + spans.places[j], *known = said[j];
      R* to = found + k * of.symbol + b * of.sample + places[j];
      add_signs(width, from, worth + b * units + at, known ? known + row * width : nullptr, to);
    }
  }
}

// Values of terms, each through its scale where it has one, and what is added to them.
template <class R> struct Terms {
  int64_t count;
  const R* const* centers;
  const R* const* sizes;
  const R* const* owns;    // each may be null
  const R* const* scales;  // likewise
  const R* constant;       // may be null
  const R* gap;            // likewise
  R rounding;              // of the sum, in units of its size
};

// `found` are the centers, the sizes and, where there are any, the errors of a weighted sum.
template <class R> static void add_terms(int64_t n, const Terms<R>& terms, bool errs, R* found) {
  R *center = found, *size = found + n, *own = found + 2 * n;
  for (int64_t i = 0; i < n; i++) {
    R sum = 0, most = 0, error = 0;
    for (int64_t k = 0; k < terms.count; k++) {
      R scale = terms.scales[k] ? terms.scales[k][i] : R(1);
      sum += scale * terms.centers[k][i], most += absolute(scale) * terms.sizes[k][i];
      if (terms.owns[k]) error += absolute(scale) * terms.owns[k][i];
    }
    if (terms.constant) sum += terms.constant[i], most += absolute(terms.constant[i]);
    if (terms.gap) most += terms.gap[i], error += terms.gap[i];
    center[i] = sum, size[i] = most;
    if (errs) own[i] = error + most * terms.rounding;
  }
}

// Adds rows of `some` blocks through their scales, first to last, or writes them.
template <int some, bool written, class R>
static inline void scaled_rows(int64_t units, const R* const* from, const R* const* scales, R* __restrict to) {
  const R *rows[some], *factors[some];
  for (int j = 0; j < some; j++) rows[j] = from[j], factors[j] = scales[j];
#pragma omp simd
  for (int64_t i = 0; i < units; i++) {
    R sum = written ? to[i] : rows[0][i] * factors[0][i];
    for (int j = written ? 0 : 1; j < some; j++) sum += rows[j][i] * factors[j][i];
    to[i] = sum;
  }
}

template <bool written, class R>
static void add_scaled(int64_t units, int64_t count, const R* const* from, const R* const* scales, R* to) {
  switch (count) {
    case 0: return;
    case 1: return scaled_rows<1, written>(units, from, scales, to);
    case 2: return scaled_rows<2, written>(units, from, scales, to);
    case 3: return scaled_rows<3, written>(units, from, scales, to);
  }
  scaled_rows<4, written>(units, from, scales, to);
  add_scaled<true>(units, count - 4, from + 4, scales + 4, to);
}

constexpr int64_t most_parts = 16;

// Blocks added up in the place of `count` symbols, each through its scale (batch, units) where it has
// one. `done` symbols are written already. `errors`, if any, get a symbol each from `first` on.
template <class R>
static void add_blocks(int64_t batch, int64_t units, int64_t count, int64_t parts, const Block<R>* blocks,
                       const R* const* scales, Span done, const R* errors, int64_t first, R* out) {
  for (int64_t k = 0; k < count; k++) {
    bool known = k >= done.start && k < done.stop;
    for (int64_t b = 0; b < batch; b++) {
      R* __restrict to = out + (k * batch + b) * units;
      const R *from[most_parts], *factors[most_parts];
      int64_t scaled = 0;
      bool written = known;
      for (int64_t j = 0; j < parts; j++) {
        const R* __restrict row = blocks[j].at(k, b);
        if (row && scales[j]) {
          if (k + 1 < blocks[j].start + blocks[j].count) fetch(units, row + blocks[j].symbol);
          from[scaled] = row, factors[scaled++] = scales[j] + b * units;
        } else if (row && written) {
#pragma omp simd
          for (int64_t i = 0; i < units; i++) to[i] += row[i];
        } else if (row) {
          __builtin_memcpy(to, row, units * sizeof(R));
          written = true;
        }
      }
      if (written)
        add_scaled<true>(units, scaled, from, factors, to);
      else if (scaled)
        add_scaled<false>(units, scaled, from, factors, to);
      else
        __builtin_memset(to, 0, units * sizeof(R));
    }
  }
  if (!errors) return;
  for (int64_t b = 0; b < batch; b++)
    for (int64_t i = 0; i < units; i++) out[((first + i) * batch + b) * units + i] += errors[b * units + i];
}

// Gradients of `some` symbols of one sample through their scales.
template <int some, class R>
static inline void scaled_rows_back(int64_t units, int64_t step, const R* worth, const R* from, int64_t symbol,
                                    const R* __restrict scale, R* to, R* __restrict of_scale) {
#pragma omp simd
  for (int64_t i = 0; i < units; i++) {
    R sum = of_scale[i];
    for (int k = 0; k < some; k++) {
      R own = worth[k * step + i];
      to[k * step + i] = own * scale[i], sum += own * from[k * symbol + i];
    }
    of_scale[i] = sum;
  }
}

// Gradients of one scaled part: of its coefficients, and added to that of its scale.
template <class R>
static void scaled_gradient(int64_t batch, int64_t units, const R* worth, const Block<R>& x, const R* scale, R* of_data,
                            R* of_scale) {
  int64_t n = batch * units;
  Coefficients<R> from = {x.data, x.symbol, x.sample};
  for (int64_t k = 0, some = 0; k < x.count; k += some) {
    some = k + at_once <= x.count ? at_once : 1;
    auto rows = some > 1 ? scaled_rows_back<at_once, R> : scaled_rows_back<1, R>;
    for (int64_t b = 0; b < batch; b++) {
      int64_t at = b * units, to = k * n + at;
      if (k + 2 * at_once <= x.count) fetch(units, from.at(k + at_once, b), x.symbol);
      rows(units, n, worth + x.start * n + to, from.at(k, b), x.symbol, scale + at, of_data + to, of_scale + at);
    }
  }
}

#define FORMS(R, suffix)                                                                                             \
  EXPORT void range_##suffix(const int64_t* sizes, double rounding, const R* const* parts, R* found) {               \
    int64_t count = sizes[2];                                                                                        \
    const int64_t *widths = sizes + 3, *first = widths + count, *second = first + 4 + count;                         \
    Block<R> blocks[2] = {block(parts[2], first), block(parts[3], second)};                                          \
    Spans spans[2] = {{count, widths, first + 4}, {count, widths, second + 4}};                                      \
    range<R>(sizes[0], sizes[1], R(rounding), parts[0], parts[1], blocks, spans, found);                             \
  }                                                                                                                  \
  EXPORT void range_gradient_##suffix(const int64_t* sizes, const R* data, const R* worth, const R* const* said,     \
                                      R* found) {                                                                    \
    int64_t count = sizes[2];                                                                                        \
    const int64_t *widths = sizes + 3, *own = widths + count, *to = own + 4 + count;                                 \
    range_gradient<R>(sizes[0], sizes[1], block(data, own), {count, widths, own + 4}, worth, said,                   \
                      block((const R*)found, to), to + 4, found);                                                    \
  }                                                                                                                  \
  EXPORT void terms_##suffix(int64_t n, int64_t count, double rounding, const R* const* parts, R* found) {           \
    bool errs = rounding > 0 || parts[4 * count + 1];                                                                \
    for (int64_t k = 0; k < count; k++) errs = errs || parts[2 * count + k];                                         \
    Terms<R> terms = {count, parts, parts + count, parts + 2 * count, parts + 3 * count, parts[4 * count],           \
                      parts[4 * count + 1], R(rounding)};                                                            \
    add_terms<R>(n, terms, errs, found);                                                                             \
  }                                                                                                                  \
  EXPORT void blocks_##suffix(const int64_t* sizes, const R* const* parts, R* out) {                                 \
    Block<R> blocks[most_parts];                                                                                     \
    int64_t count = sizes[3];                                                                                        \
    for (int64_t k = 0; k < count; k++) blocks[k] = block(parts[k], sizes + 7 + 4 * k);                              \
    add_blocks<R>(sizes[0], sizes[1], sizes[2], count, blocks, parts + count, {sizes[4], sizes[5]},                  \
                  parts[2 * count], sizes[6], out);                                                                  \
  }                                                                                                                  \
  EXPORT void scaled_gradient_##suffix(const int64_t* sizes, const R* worth, const R* data, const R* scale,          \
                                       R* of_data, R* of_scale) {                                                    \
    scaled_gradient<R>(sizes[0], sizes[1], worth, block(data, sizes + 2), scale, of_data, of_scale);                 \
  }
