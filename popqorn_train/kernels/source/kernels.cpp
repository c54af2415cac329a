// What Python calls. Every array is contiguous, and n units lie in one.
#include "bands.h"
#include "inputs.h"
#include "lines.h"
#include "rows.h"
#include "units.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// `planes` are as of units.h, n numbers each.
template <class V>
static void enclose_all(int64_t n, bool curved, bool octagon, const Choice<V>& choice, const Number<V>* const* ends,
                        Number<V>* planes) {
  for (int64_t i = 0; i < n; i += lanes<V>) {
    V own[8] = {}, found[6];
    for (int k = 0; k < (octagon ? 8 : 4); k++) own[k] = load<V>(ends[k] + i, n - i);
    enclose(own, curved, octagon, choice, found);
    for (int k = 0; k < 6; k++) store(found[k], planes + k * n + i, n - i);
  }
}

template <class V>
static void narrow_all(int64_t n, bool curved, const Number<V>* const* ends, Number<V>* strips) {
  for (int64_t i = 0; i < n; i += lanes<V>) {
    V own[8], found[4];
    for (int k = 0; k < 8; k++) own[k] = load<V>(ends[k] + i, n - i);
    narrow(own, curved, found);
    for (int k = 0; k < 4; k++) store(found[k], strips + k * n + i, n - i);
  }
}

// Chords of products, or, with two ends, chords or lines of tanh or sigmoid, through `f(ends, found)`.
template <class V, int in, int out, class F>
static void through(int64_t n, const Number<V>* const* ends, Number<V>* strips, F f) {
  for (int64_t i = 0; i < n; i += lanes<V>) {
    V at[8] = {}, found[4];
    for (int k = 0; k < in; k++) at[k] = load<V>(ends[k] + i, n - i);
    V nan = out == 4 && in == 2 ? not_finite(at[0], at[1])
                                : failure(Box<V>{at[0], at[1], at[2], at[3]}, Bands<V>{at[4], at[5], at[6], at[7]});
    f(at, found);
    for (int k = 0; k < out; k++) store(found[k] + nan, strips + k * n + i, n - i);
  }
}

// The gradient of the same in all ends.
template <class V, int in, int out, class F>
static void back(int64_t n, const Number<V>* const* ends, const Number<V>* strips, Number<V>* of_ends, F f) {
  for (int64_t i = 0; i < n; i += lanes<V>) {
    Dual<V, in> at[in], found[4];
    for (int k = 0; k < in; k++) {
      at[k] = {load<V>(ends[k] + i, n - i), {}};
      for (int j = 0; j < in; j++) at[k].in[j] = all<V>(j == k);
    }
    f(at, found);
    for (int k = 0; k < in; k++) {
      V sum = V{};
      for (int j = 0; j < out; j++) sum += load<V>(strips + j * n + i, n - i) * found[j].in[k];
      store(sum, of_ends + k * n + i, n - i);
    }
  }
}

// Chords of sigmoid(x) y (0), sigmoid(x) tanh(y) (1), tanh (2) and sigmoid (3); lines of tanh (4) and
// sigmoid (5).
template <class V> static void chords_through(int64_t which, int64_t n, const Number<V>* const* ends, Number<V>* strips) {
  if (which == 0) through<V, 8, 4>(n, ends, strips, MemoryChords());
  if (which == 1) through<V, 8, 4>(n, ends, strips, CurvedChords());
  if (which == 2) through<V, 2, 3>(n, ends, strips, TanhStrip());
  if (which == 3) through<V, 2, 3>(n, ends, strips, SigmoidStrip());
  if (which == 4) through<V, 2, 4>(n, ends, strips, LeastArea<true>());
  if (which == 5) through<V, 2, 4>(n, ends, strips, LeastArea<false>());
}

template <class V>
static void chords_back(int64_t which, int64_t n, const Number<V>* const* ends, const Number<V>* strips, Number<V>* of_ends) {
  if (which == 0) back<V, 8, 4>(n, ends, strips, of_ends, MemoryChords());
  if (which == 1) back<V, 8, 4>(n, ends, strips, of_ends, CurvedChords());
  if (which == 2) back<V, 2, 3>(n, ends, strips, of_ends, TanhStrip());
  if (which == 3) back<V, 2, 3>(n, ends, strips, of_ends, SigmoidStrip());
  if (which == 4) back<V, 2, 4>(n, ends, strips, of_ends, LeastArea<true>());
  if (which == 5) back<V, 2, 4>(n, ends, strips, of_ends, LeastArea<false>());
}

// Lines of every row that are closest at its points (batch, rows, n), between ends (batch, n). `found`
// has the points' shape four times: slope and intercept below, then above.
template <bool curved, class V>
static void closest(int64_t batch, int64_t rows, int64_t n, const Number<V>* const* ends, const Number<V>* points,
                    Number<V>* found) {
  for (int64_t b = 0; b < batch; b++) {
    for (int64_t i = 0; i < n; i += lanes<V>) {
      Closest<curved, V> on(load<V>(ends[0] + b * n + i, n - i), load<V>(ends[1] + b * n + i, n - i));
      for (int64_t at = b * rows * n + i; at < (b + 1) * rows * n; at += n) {
        V own[4];
        on.lines(load<V>(points + at, n - i), own);
        for (int k = 0; k < 4; k++) store(own[k], found + k * batch * rows * n + at, n - i);
      }
    }
  }
}

// The gradient of the same in both ends.
template <bool curved, class V>
static void closest_back(int64_t batch, int64_t rows, int64_t n, const Number<V>* const* ends, const Number<V>* points,
                         const Number<V>* worth, Number<V>* of_ends) {
  for (int64_t b = 0; b < batch; b++) {
    for (int64_t i = 0; i < n; i += lanes<V>) {
      Closest<curved, V> on(load<V>(ends[0] + b * n + i, n - i), load<V>(ends[1] + b * n + i, n - i));
      V of_low = {}, of_high = {}, rest[6] = {};
      for (int64_t at = b * rows * n + i; at < (b + 1) * rows * n; at += n) {
        V own[4];
        for (int k = 0; k < 4; k++) own[k] = load<V>(worth + k * batch * rows * n + at, n - i);
        on.gradient(load<V>(points + at, n - i), own, of_low, of_high, rest);
      }
      on.finish(rest, of_low, of_high);
      store(of_low, of_ends + b * n + i, n - i), store(of_high, of_ends + (batch + b) * n + i, n - i);
    }
  }
}

// The gradient of closed-form planes on boxes in lx, ux, ly and uy, n numbers each.
template <class V>
static void gradient_of_all(int64_t n, bool curved, Number<V> share, const Number<V>* const* ends,
                            const Number<V>* planes, Number<V>* of_ends) {
  for (int64_t i = 0; i < n; i += lanes<V>) {
    V own[4], worth[6], found[4];
    for (int k = 0; k < 6; k++) worth[k] = load<V>(planes + k * n + i, n - i);
    for (int k = 0; k < 4; k++) own[k] = load<V>(ends[k] + i, n - i);
    gradient(own, curved, share, worth, found);
    for (int k = 0; k < 4; k++) store(found[k], of_ends + k * n + i, n - i);
  }
}

// The gradient of planes on octagons in lx to diff_high; a plane's number may be worth nothing (null).
template <class V>
static void gradient_on_octagons(int64_t n, bool curved, const Choice<V>& choice, const Number<V>* const* ends,
                                 const Number<V>* planes, const Number<V>* const* worths, Number<V>* of_ends) {
  for (int64_t i = 0; i < n; i += lanes<V>) {
    V own[8], known[6], worth[6], found[8];
    for (int k = 0; k < 8; k++) own[k] = load<V>(ends[k] + i, n - i);
    for (int k = 0; k < 6; k++) {
      known[k] = load<V>(planes + k * n + i, n - i);
      worth[k] = worths[k] ? load<V>(worths[k] + i, n - i) : V{};
    }
    gradient_on_octagon(own, curved, choice, known, worth, found);
    for (int k = 0; k < 8; k++) store(found[k], of_ends + k * n + i, n - i);
  }
}

template <class V> static void function_of_all(int64_t which, int64_t n, const Number<V>* x, Number<V>* found) {
  for (int64_t i = 0; i < n; i += lanes<V>) store(function(which, load<V>(x + i, n - i)), found + i, n - i);
}

#define EXPORTS(V, suffix)                                                                                          \
  EXPORT void planes_##suffix(int64_t n, int64_t curved, int64_t octagon, int64_t tilted, int64_t steps,            \
                              double share, double shift_x, double shift_y, const Number<V>* const* ends,           \
                              Number<V>* planes) {                                                                  \
    Choice<V> choice = {tilted, steps, Number<V>(share), {Number<V>(shift_x), Number<V>(shift_y)}};                 \
    enclose_all<V>(n, curved, octagon, choice, ends, planes);                                                       \
  }                                                                                                                 \
  EXPORT void strips_##suffix(int64_t n, int64_t curved, const Number<V>* const* ends, Number<V>* strips) {         \
    narrow_all<V>(n, curved, ends, strips);                                                                         \
  }                                                                                                                 \
  EXPORT void gradient_##suffix(int64_t n, int64_t curved, double share, const Number<V>* const* ends,              \
                                const Number<V>* planes, Number<V>* of_ends) {                                      \
    gradient_of_all<V>(n, curved, Number<V>(share), ends, planes, of_ends);                                         \
  }                                                                                                                 \
  EXPORT void octagon_gradient_##suffix(int64_t n, int64_t curved, int64_t tilted, double share,                    \
                                        const Number<V>* const* ends, const Number<V>* planes,                      \
                                        const Number<V>* const* worths, Number<V>* of_ends) {                       \
    Choice<V> choice = {tilted, 0, Number<V>(share), {}};                                                           \
    gradient_on_octagons<V>(n, curved, choice, ends, planes, worths, of_ends);                                      \
  }                                                                                                                 \
  EXPORT void chords_##suffix(int64_t which, int64_t n, const Number<V>* const* ends, Number<V>* strips) {          \
    chords_through<V>(which, n, ends, strips);                                                                      \
  }                                                                                                                 \
  EXPORT void chords_gradient_##suffix(int64_t which, int64_t n, const Number<V>* const* ends,                      \
                                       const Number<V>* strips, Number<V>* of_ends) {                               \
    chords_back<V>(which, n, ends, strips, of_ends);                                                                \
  }                                                                                                                 \
  EXPORT void closest_##suffix(int64_t curved, int64_t batch, int64_t rows, int64_t n, const Number<V>* const* ends, \
                               const Number<V>* points, Number<V>* found) {                                         \
    (curved ? closest<true, V> : closest<false, V>)(batch, rows, n, ends, points, found);                           \
  }                                                                                                                 \
  EXPORT void closest_gradient_##suffix(int64_t curved, int64_t batch, int64_t rows, int64_t n,                     \
                                        const Number<V>* const* ends, const Number<V>* points,                      \
                                        const Number<V>* worth, Number<V>* of_ends) {                               \
    (curved ? closest_back<true, V> : closest_back<false, V>)(batch, rows, n, ends, points, worth, of_ends);        \
  }                                                                                                                 \
  EXPORT void function_##suffix(int64_t which, int64_t n, const Number<V>* x, Number<V>* found) {                   \
    function_of_all<V>(which, n, x, found);                                                                         \
  }                                                                                                                 \
  INPUTS(V, suffix)                                                                                                 \
  ROWS(Number<V>, suffix)                                                                                           \
  SUMS(Number<V>, suffix)                                                                                           \
  FORMS(Number<V>, suffix)                                                                                          \
  BANDS(Number<V>, suffix)

EXPORTS(Float, float)
EXPORTS(Double, double)
