// exp, log, sigmoid and tanh, by Taylor's series, whose remainder is below the precision:
//
//   exp    x = n ln 2 + r, |r| <= ln 2 / 2;  sum of r^k / k!;  times 2^n
//   log    p / q = 2^n m, |log2 m| < .6;  log m = 2 artanh s = 2 (s + s^3/3 + ...),  s = (m-1)/(m+1)
//
// tests/kernels/test_functions.py measures the errors that planes.h allows for.
#pragma once
#include "lanes.h"

constexpr double factorial(int k) { return k < 2 ? 1 : k * factorial(k - 1); }

// 1 / k! + x / (k + 1)! + ...; every term is one fused multiplication and addition.
template <int last, int k, class V> INLINE V exp_series(V x) {
  constexpr Number<V> share = 1 / factorial(k);
  if constexpr (k < last) return exp_series<last, k + 1>(x) * x + share;
  return all<V>(share);
}

// 1 / (2 k + 1) + x / (2 k + 3) + ...
template <int last, int k, class V> INLINE V artanh_series(V x) {
  constexpr Number<V> share = 1.0 / (2 * k + 1);
  if constexpr (k < last) return artanh_series<last, k + 1>(x) * x + share;
  return all<V>(share);
}

// x = n ln 2 + r: 2^n by its exponent, and exp(r) - 1.
template <class V> struct Power {
  Wholes<V> n;
  V rest;
};

template <class V> INLINE Power<V> power(V x) {
  typedef Of<V> O;
  V shifted = x * Number<V>(1.4426950408889634) + Number<V>(O::round), whole = shifted - O::round;
  V r = (x - whole * O::ln2_high) - whole * O::ln2_low;
  return {bits(shifted) - bits(all<V>(O::round)), r + r * r * exp_series<O::exp_terms, 2>(r)};
}

template <class V> INLINE V two_to(Wholes<V> n) { return from_bits((n + Of<V>::bias) << Of<V>::mantissa); }

// exp(-x) for x >= 0; in two factors, for numbers below the smallest normal one.
template <class V> INLINE V exp_minus(V x) {
  Power<V> part = power(-at_most(x, Of<V>::deepest));
  Wholes<V> half = part.n >> 1;
  return (1 + part.rest) * two_to<V>(half) * two_to<V>(part.n - half);
}

template <class V> INLINE V sigmoid(V x) {
  V e = exp_minus(abs(x)), upper = 1 / (1 + e);
  return x < 0 ? e * upper : upper;
}

template <class V> INLINE V tanh(V x) {
  Power<V> part = power(-2 * at_most(abs(x), 20));
  V scale = two_to<V>(part.n), below = scale * part.rest + (scale - 1);  // exp(-2 |x|) - 1
  return with_sign_of(-below / (2 + below), x);
}

// p / q = 2^n (1 + s) / (1 - s), for positive normal numbers. The bits of a number, less those of 1, are its
// logarithm but for .09 of a power of two.
template <class V> struct Fraction {
  Wholes<V> n;
  V s;

  Fraction(V p, V q) {
    typedef Of<V> O;
    const Wholes<V> half = Wholes<V>{} + (typename O::Whole(1) << (O::mantissa - 1));
    n = (bits(p) - bits(q) + half) >> O::mantissa;
    V m = from_bits(bits(p) - (n << O::mantissa));
    s = (m - q) / (m + q);
  }
};

template <class V> INLINE V log(Fraction<V> f) {
  typedef Of<V> O;
  V square = f.s * f.s, rest = f.s * square * artanh_series<O::log_terms, 1>(square), whole = as_number<V>(f.n);
  return whole * O::ln2_high + (whole * O::ln2_low + 2 * (f.s + rest));
}

// For positive normal numbers.
template <class V> INLINE V log(V x) { return log(Fraction<V>(x, V{} + 1)); }

template <class V> INLINE V tanh_slope(V x) {
  V t = tanh(x);
  return 1 - t * t;
}

template <class V> INLINE V sigmoid_slope(V x) {
  V e = exp_minus(abs(x)), upper = 1 / (1 + e);
  return e * upper * upper;
}

// Slope of a chord, given tanh at both ends; without cancellation.
template <class V> INLINE V tanh_secant(V low, V high, V at_low, V at_high) {
  V width = at_least(high - low, 1e-30);
  return tanh(width) / width * (1 - at_low * at_high);
}
