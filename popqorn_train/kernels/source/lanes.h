// Numbers side by side: one vector register holds one unit a lane, and every lane does the same.
//
// A block is always computed whole, so that a unit has the same bits whatever lies beside it.
// Comparisons give lanes of 0 or -1, and `mask ? a : b` chooses lane by lane. Where a number is NaN
// the minimum and the maximum are the second argument: units.h returns NaN for such units.
//
// On a GPU a thread has one unit, and a vector is a number: masks are 0 or 1 there.
#pragma once
#include <stdint.h>

#ifdef __CUDACC__
typedef float Float;
typedef double Double;
typedef int32_t Int;
typedef int64_t Long;
#else
// Of a vector: those of a register.
#if defined(__AVX512F__)
#include <immintrin.h>
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

typedef float Float __attribute__((vector_size(BYTES)));
typedef double Double __attribute__((vector_size(BYTES)));
typedef int32_t Int __attribute__((vector_size(BYTES)));
typedef int64_t Long __attribute__((vector_size(BYTES)));
#endif

// What depends on the precision.
template <class V> struct Of;

template <> struct Of<Float> {
  typedef float Number;
  typedef int32_t Whole;
  typedef Int Wholes;
  static constexpr int mantissa = 23, bias = 127, exp_terms = 7, log_terms = 5, newton_steps = 2;
  static constexpr float eps = 0x1p-23f, tiny = 0x1p-126f, least = 1e-36f, narrow = 1e-3f;
  static constexpr float root3_eps = 4.9215666e-3f, gain = 1e-7f;  // eps^(1/3)
  static constexpr float round = 0x1.8p23f, ln2_high = 0x1.63p-1f, ln2_low = -0x1.bd0106p-13f;
  static constexpr float deepest = 110, largest = 1e15f;
};

template <> struct Of<Double> {
  typedef double Number;
  typedef int64_t Whole;
  typedef Long Wholes;
  static constexpr int mantissa = 52, bias = 1023, exp_terms = 13, log_terms = 11, newton_steps = 3;
  static constexpr double eps = 0x1p-52, tiny = 0x1p-1022, least = 1e-300, narrow = 1e-7;
  static constexpr double root3_eps = 6.0554544523933395e-06, gain = 1e-9;
  static constexpr double round = 0x1.8p52, ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double deepest = 750, largest = 1e100;
};

template <class V> using Number = typename Of<V>::Number;
template <class V> using Wholes = typename Of<V>::Wholes;

#define INLINE static inline __attribute__((always_inline))
#ifdef __CUDACC__
#define ROLLED _Pragma("unroll 1")  // else a loop is written out, which takes a minute to compile
#else
#define ROLLED
#endif

#ifdef __CUDACC__
INLINE Int bits(Float x) { return __float_as_int(x); }
INLINE Long bits(Double x) { return __double_as_longlong(x); }
INLINE Float from_bits(Int x) { return __int_as_float(x); }
INLINE Double from_bits(Long x) { return __longlong_as_double(x); }
INLINE Float root(Float x) { return ::sqrtf(x); }
INLINE Double root(Double x) { return ::sqrt(x); }
INLINE double infinity() { return __longlong_as_double(0x7ff0000000000000); }
INLINE double not_a_number() { return __longlong_as_double(0x7ff8000000000000); }
INLINE bool any(bool mask) { return mask; }
template <class V> INLINE V as_number(Wholes<V> n) { return V(n); }
#else
template <class V> constexpr int lanes = BYTES / sizeof(Number<V>);

INLINE Int bits(Float x) { return (Int)x; }
INLINE Long bits(Double x) { return (Long)x; }
INLINE Float from_bits(Int x) { return (Float)x; }
INLINE Double from_bits(Long x) { return (Double)x; }

INLINE double infinity() { return __builtin_huge_val(); }
INLINE double not_a_number() { return __builtin_nan(""); }
INLINE float root(float x) { return __builtin_sqrtf(x); }
INLINE double root(double x) { return __builtin_sqrt(x); }
template <class V> INLINE V root(V x) {
  V found;
  for (int i = 0; i < lanes<V>; i++) found[i] = root(x[i]);
  return found;
}

template <class W> INLINE bool any(W mask) {
  int64_t parts[BYTES / 8], found = 0;
  __builtin_memcpy(parts, &mask, BYTES);
  for (int i = 0; i < BYTES / 8; i++) found |= parts[i];
  return found != 0;
}

template <class V> INLINE V as_number(Wholes<V> n) { return __builtin_convertvector(n, V); }

// The last block is filled up with its last unit.
template <class V> INLINE V load(const Number<V>* from, int64_t count) {
  V found;
  if (count >= lanes<V>) {
    __builtin_memcpy(&found, from, BYTES);
    return found;
  }
  for (int i = 0; i < lanes<V>; i++) found[i] = from[i < count ? i : count - 1];
  return found;
}

template <class V> INLINE void store(V value, Number<V>* to, int64_t count) {
  if (count >= lanes<V>) __builtin_memcpy(to, &value, BYTES);  // of a known size: one instruction
  else __builtin_memcpy(to, &value, count * sizeof(Number<V>));
}

template <class V> INLINE Number<V> sum_of_lanes(V x) {
  Number<V> sum = 0;
  for (int i = 0; i < lanes<V>; i++) sum += x[i];
  return sum;
}
#endif

template <class V> INLINE V all(double x) { return V{} + Number<V>(x); }
template <class V> INLINE V min(V a, V b) { return a < b ? a : b; }
template <class V> INLINE V max(V a, V b) { return a > b ? a : b; }
#if BYTES == 64
// The same in one instruction, where a compiler takes two.
INLINE Float min(Float a, Float b) { return (Float)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE Float max(Float a, Float b) { return (Float)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE Double min(Double a, Double b) { return (Double)_mm512_min_pd((__m512d)a, (__m512d)b); }
INLINE Double max(Double a, Double b) { return (Double)_mm512_max_pd((__m512d)a, (__m512d)b); }
#endif
template <class V> INLINE V clip(V x, V low, V high) { return min(max(x, low), high); }
template <class V> INLINE V within(V x, double low, double high) { return clip(x, all<V>(low), all<V>(high)); }
template <class V> INLINE V at_least(V x, double low) { return max(x, all<V>(low)); }
template <class V> INLINE V at_most(V x, double high) { return min(x, all<V>(high)); }

template <class V> INLINE Wholes<V> sign_bit() { return bits(-V{}); }
template <class V> INLINE V abs(V x) { return from_bits(bits(x) & ~sign_bit<V>()); }
template <class V> INLINE V with_sign_of(V size, V sign) {
  return from_bits(bits(size) | (bits(sign) & sign_bit<V>()));
}
template <class V> INLINE V largest(V low, V high) { return max(abs(low), abs(high)); }

// From start to stop as torch.lerp does it: exact at both ends.
template <class V> INLINE V between(V start, V stop, Number<V> share) {
  if (share < Number<V>(0.5)) return start + share * (stop - start);
  return stop - (stop - start) * (1 - share);
}
