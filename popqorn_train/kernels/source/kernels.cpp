// What Python calls. Every array is contiguous; n units lie in one, and `ends` are lx, ux, ly, uy
// and, for octagons, sum_low, sum_high, diff_low, diff_high.
#include "bands.h"
#include "chords.h"
#include "gradients.h"
#include "rows.h"
#include "strips.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// The last block is filled up with its last unit.
template <class V> static V load(const Number<V>* from, int64_t count) {
  V found;
  if (count >= lanes<V>) {
    __builtin_memcpy(&found, from, BYTES);
    return found;
  }
  for (int i = 0; i < lanes<V>; i++) found[i] = from[i < count ? i : count - 1];
  return found;
}

template <class V> static void store(V value, Number<V>* to, int64_t count) {
  __builtin_memcpy(to, &value, (count < lanes<V> ? count : lanes<V>) * sizeof(Number<V>));
}

// 0 where all ends are numbers that can be reckoned with, else NaN.
template <class V> static V failure(const Box<V>& box, const Bands<V>& bands) {
  const Number<V> most = Of<V>::largest;
  auto fine = (abs(box.lx) <= most) & (abs(box.ux) <= most) & (abs(box.ly) <= most) & (abs(box.uy) <= most);
  fine &= (abs(bands.sum_low) <= 4) & (abs(bands.sum_high) <= 4);
  fine &= (abs(bands.diff_low) <= 4) & (abs(bands.diff_high) <= 4);
  return fine ? V{} : all<V>(__builtin_nan(""));
}

template <class V>
static Plane<V> above(const Box<V>& box, const Bands<V>& bands, int kind, const Choice<V>& choice) {
  switch (kind) {
    case 0: return memory_on_box(box, choice);
    case 1: return curved_on_box(box, choice);
    case 2: return on_octagon<false>(box, bands, choice);
    default: return on_octagon<true>(box, bands, choice);
  }
}

// `planes` are x, y and intercept of the lower plane, then of the upper one, n numbers each.
template <class V>
static void enclose(int64_t n, int64_t curved, int64_t octagon, const Choice<V>& choice, const Number<V>* const* ends,
                    Number<V>* planes) {
  int kind = (octagon ? 2 : 0) + (curved ? 1 : 0);
  for (int64_t i = 0; i < n; i += lanes<V>) {
    int64_t count = n - i;
    Box<V> box = {load<V>(ends[0] + i, count), load<V>(ends[1] + i, count), load<V>(ends[2] + i, count),
                  load<V>(ends[3] + i, count)};
    Bands<V> bands = {V{}, V{}, V{}, V{}};
    if (octagon)
      bands = {load<V>(ends[4] + i, count), load<V>(ends[5] + i, count), load<V>(ends[6] + i, count),
               load<V>(ends[7] + i, count)};
    V nan = failure(box, bands);
    Plane<V> upper = above(box, bands, kind, choice);
    Box<V> mirror = {box.lx, box.ux, -box.uy, -box.ly};
    Bands<V> mirrored = {bands.diff_low, bands.diff_high, bands.sum_low, bands.sum_high};
    Plane<V> lower = above(mirror, mirrored, kind, choice);
    V found[6] = {-lower.a, lower.b, -lower.top, upper.a, upper.b, upper.top};
    for (int k = 0; k < 6; k++) store(found[k] + nan, planes + k * n + i, count);
  }
}

// `strips` are the slopes in x and y, the middle and the half, n numbers each.
template <class V>
static void narrow(int64_t n, int64_t curved, const Number<V>* const* ends, Number<V>* strips) {
  for (int64_t i = 0; i < n; i += lanes<V>) {
    int64_t count = n - i;
    V at[8];
    for (int k = 0; k < 8; k++) at[k] = load<V>(ends[k] + i, count);
    Box<V> box = {at[0], at[1], at[2], at[3]};
    Bands<V> bands = {at[4], at[5], at[6], at[7]};
    V nan = failure(box, bands);
    Strip<V> found = curved ? strip<true>(box, bands) : strip<false>(box, bands);
    V parts[4] = {found.a, found.b, found.middle, found.half};
    for (int k = 0; k < 4; k++) store(parts[k] + nan, strips + k * n + i, count);
  }
}

// Chords of products, or, with two ends, of tanh or sigmoid, through `f(ends, found)`.
template <class V, int in, int out, class F>
static void through(int64_t n, const Number<V>* const* ends, Number<V>* strips, F f) {
  for (int64_t i = 0; i < n; i += lanes<V>) {
    V at[8] = {}, found[4];
    for (int k = 0; k < in; k++) at[k] = load<V>(ends[k] + i, n - i);
    V nan = failure(Box<V>{at[0], at[1], at[2], at[3]}, Bands<V>{at[4], at[5], at[6], at[7]});
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

// 0: of sigmoid(x) y, 1: of sigmoid(x) tanh(y), 2: of tanh, 3: of sigmoid.
template <class V> static void chords_through(int64_t which, int64_t n, const Number<V>* const* ends, Number<V>* strips) {
  if (which == 0) through<V, 8, 4>(n, ends, strips, MemoryChords());
  if (which == 1) through<V, 8, 4>(n, ends, strips, CurvedChords());
  if (which == 2) through<V, 2, 3>(n, ends, strips, TanhStrip());
  if (which == 3) through<V, 2, 3>(n, ends, strips, SigmoidStrip());
}

template <class V>
static void chords_back(int64_t which, int64_t n, const Number<V>* const* ends, const Number<V>* strips, Number<V>* of_ends) {
  if (which == 0) back<V, 8, 4>(n, ends, strips, of_ends, MemoryChords());
  if (which == 1) back<V, 8, 4>(n, ends, strips, of_ends, CurvedChords());
  if (which == 2) back<V, 2, 3>(n, ends, strips, of_ends, TanhStrip());
  if (which == 3) back<V, 2, 3>(n, ends, strips, of_ends, SigmoidStrip());
}

// The gradient of closed-form planes on boxes in lx, ux, ly and uy, n numbers each.
template <class V>
static void gradient(int64_t n, int64_t curved, Number<V> share, const Number<V>* const* ends, const Number<V>* planes,
                     Number<V>* of_ends) {
  auto of = curved ? of_curved<V> : of_memory<V>;
  for (int64_t i = 0; i < n; i += lanes<V>) {
    int64_t count = n - i;
    V worth[6], in[4];
    for (int k = 0; k < 6; k++) worth[k] = load<V>(planes + k * n + i, count);
    for (int k = 0; k < 4; k++) in[k] = load<V>(ends[k] + i, count);
    Box<V> upper = of({in[0], in[1], in[2], in[3]}, share, {worth[3], worth[4], worth[5]});
    Box<V> lower = of({in[0], in[1], -in[3], -in[2]}, share, {-worth[0], worth[1], -worth[2]});
    V found[4] = {upper.lx + lower.lx, upper.ux + lower.ux, upper.ly - lower.uy, upper.uy - lower.ly};
    for (int k = 0; k < 4; k++) store(found[k], of_ends + k * n + i, count);
  }
}

template <class V> static void each(V (*f)(V), int64_t n, const Number<V>* x, Number<V>* found) {
  for (int64_t i = 0; i < n; i += lanes<V>) store(f(load<V>(x + i, n - i)), found + i, n - i);
}

template <class V> static void function(int64_t which, int64_t n, const Number<V>* x, Number<V>* found) {
  if (which == 0) each<V>([](V v) { return sigmoid(v); }, n, x, found);
  if (which == 1) each<V>([](V v) { return tanh(v); }, n, x, found);
  if (which == 2) each<V>([](V v) { return log(v); }, n, x, found);
}

#define EXPORTS(V, suffix)                                                                                          \
  EXPORT void planes_##suffix(int64_t n, int64_t curved, int64_t octagon, int64_t tilted, int64_t steps,            \
                              double share, double shift_x, double shift_y, const Number<V>* const* ends,           \
                              Number<V>* planes) {                                                                  \
    Choice<V> choice = {tilted, steps, Number<V>(share), {Number<V>(shift_x), Number<V>(shift_y)}};                 \
    enclose<V>(n, curved, octagon, choice, ends, planes);                                                           \
  }                                                                                                                 \
  EXPORT void strips_##suffix(int64_t n, int64_t curved, const Number<V>* const* ends, Number<V>* strips) {         \
    narrow<V>(n, curved, ends, strips);                                                                             \
  }                                                                                                                 \
  EXPORT void gradient_##suffix(int64_t n, int64_t curved, double share, const Number<V>* const* ends,               \
                                const Number<V>* planes, Number<V>* of_ends) {                                       \
    gradient<V>(n, curved, Number<V>(share), ends, planes, of_ends);                                                \
  }                                                                                                                 \
  EXPORT void chords_##suffix(int64_t which, int64_t n, const Number<V>* const* ends, Number<V>* strips) {          \
    chords_through<V>(which, n, ends, strips);                                                                      \
  }                                                                                                                 \
  EXPORT void chords_gradient_##suffix(int64_t which, int64_t n, const Number<V>* const* ends,                      \
                                       const Number<V>* strips, Number<V>* of_ends) {                               \
    chords_back<V>(which, n, ends, strips, of_ends);                                                                \
  }                                                                                                                 \
  EXPORT void function_##suffix(int64_t which, int64_t n, const Number<V>* x, Number<V>* found) {                   \
    function<V>(which, n, x, found);                                                                                \
  }                                                                                                                 \
  ROWS(Number<V>, suffix)                                                                                           \
  SUMS(Number<V>, suffix)                                                                                            \
  FORMS(Number<V>, suffix)                                                                                          \
  BANDS(Number<V>, suffix)

EXPORTS(Float, float)
EXPORTS(Double, double)
