// The least value over a box of slopes on what a matrix makes of every frame of the input, and what the
// matrix makes of the input where it is: slopes on the input itself are never written down.
//
// Rows are taken some at a time, each summed in an order that its length alone decides: a term at a
// time, so that nothing is left to a compiler that joins products and sums. A last block repeats its
// last row.
#pragma once
#include "lanes.h"

constexpr int most_inputs = 1024, filling = 16;  // as of inputs.py

template <class V, int some> struct Carried {
  int64_t rows, frames, outputs, inputs, padded;  // inputs are filled up by zeros
  const Number<V>*weight, *turned;                // (outputs, padded), (inputs, outputs filled up)
  const Number<V>*center, *half;                  // of one sample: (frames or more, padded)

  // One vector of inputs of one frame: adds to the least values, and keeps where they are.
  template <bool placed>
  void least(const Number<V>* const* own, int64_t frame, int64_t i, V (&sums)[some],
             Number<V> (&place)[some][most_inputs]) const {
    V slope[some] = {}, none = V{};
    for (int64_t j = 0; j < outputs; j++) {
      V w = load<V>(weight + j * padded + i, lanes<V>);
#pragma GCC unroll 8
      for (int r = 0; r < some; r++) slope[r] += w * own[r][frame * outputs + j];
    }
    V c = load<V>(center + frame * padded + i, lanes<V>), h = load<V>(half + frame * padded + i, lanes<V>);
#pragma GCC unroll 8
    for (int r = 0; r < some; r++) {
      sums[r] += slope[r] * c;
      sums[r] -= abs(slope[r]) * h;
      if (placed) store(c - (slope[r] > 0 ? h : (slope[r] < 0 ? -h : none)), &place[r][i], lanes<V>);
    }
  }

  // What the matrix makes of these places.
  void image(const Number<V> (&place)[some][most_inputs], Number<V>* const* to) const {
    const int64_t width = (outputs + filling - 1) / filling * filling;
    for (int64_t j = 0; j < outputs; j += lanes<V>) {
      V sum[some] = {};
      for (int64_t i = 0; i < inputs; i++) {
        V w = load<V>(turned + i * width + j, lanes<V>);
#pragma GCC unroll 8
        for (int r = 0; r < some; r++) sum[r] += w * place[r][i];
      }
      for (int r = 0; r < some; r++) store(sum[r], to[r] + j, outputs - j);
    }
  }

  // slope, image: (rows, frames, outputs).
  template <bool placed> void run(const Number<V>* slope, Number<V>* values, Number<V>* images) const {
    Number<V> place[some][most_inputs];
    const int64_t size = frames * outputs;
    for (int64_t k = 0; k < rows; k += some) {
      const Number<V>* own[some];
      Number<V>* to[some];
      V sums[some] = {};
      for (int r = 0; r < some; r++) own[r] = slope + (k + r < rows ? k + r : rows - 1) * size;
      for (int64_t frame = 0; frame < frames; frame++) {
        for (int64_t i = 0; i < padded; i += lanes<V>) least<placed>(own, frame, i, sums, place);
        if (!placed) continue;
        for (int r = 0; r < some; r++) to[r] = images + (own[r] - slope) + frame * outputs;
        image(place, to);
      }
      for (int r = 0; r < some; r++) values[(own[r] - slope) / size] = sum_of_lanes(sums[r]);
    }
  }
};

// slope: (batch, rows, frames, outputs), the same for all samples where `step` is 0; center and half have
// `stride` numbers a sample; images may be null.
template <class V, int some>
static void carry(int64_t batch, int64_t step, int64_t stride, Carried<V, some> by, const Number<V>* slope,
                  Number<V>* values, Number<V>* images) {
  for (int64_t b = 0; b < batch; b++, by.center += stride, by.half += stride) {
    int64_t to = b * by.rows;
    if (images) by.template run<true>(slope + b * step, values + to, images + to * by.frames * by.outputs);
    else by.template run<false>(slope + b * step, values + to, images);
  }
}

// The number of rows at once, from 5 to 8, that leaves the fewest to be repeated.
static int fitting(int64_t rows) {
  int best = 8;
  for (int some = 7; some > 4; some--)
    if ((rows + some - 1) / some * some < (rows + best - 1) / best * best) best = some;
  return best;
}

#define CARRY(V, some)                                                                                             \
  case some: {                                                                                                     \
    Carried<V, some> by = {rows, frames, outputs, inputs, padded, weight, turned, center, half};                   \
    return carry<V, some>(batch, step, stride, by, slope, values, images);                                         \
  }

#define INPUTS(V, suffix)                                                                                          \
  EXPORT void carry_##suffix(int64_t batch, int64_t rows, int64_t frames, int64_t outputs, int64_t inputs,         \
                             int64_t padded, const Number<V>* slope, int64_t step, const Number<V>* weight,        \
                             const Number<V>* turned, const Number<V>* center, const Number<V>* half,              \
                             int64_t stride, Number<V>* values, Number<V>* images) {                               \
    switch (fitting(rows)) { CARRY(V, 5) CARRY(V, 6) CARRY(V, 7) CARRY(V, 8) }                                     \
  }
