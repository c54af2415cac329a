// What Python calls. Every array is contiguous, and n units lie in one.
#include "rows.h"
#include "sums.h"
#include "units.h"

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
  EXPORT void function_##suffix(int64_t which, int64_t n, const Number<V>* x, Number<V>* found) {                   \
    function_of_all<V>(which, n, x, found);                                                                         \
  }                                                                                                                 \
  ROWS(Number<V>, suffix)                                                                                           \
  SUMS(Number<V>, suffix)

EXPORTS(Float, float)
EXPORTS(Double, double)
