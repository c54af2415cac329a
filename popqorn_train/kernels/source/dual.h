// Numbers with their derivatives in n others, for gradients of formulas that are written once. A plain
// vector is a number without any.
#pragma once
#include "extremum.h"

template <class V, int n> struct Dual {
  V value, in[n];
};

template <class N> struct Base { typedef N type; };
template <class V, int n> struct Base<Dual<V, n>> { typedef V type; };
template <class N> using Plain = typename Base<N>::type;

template <class V> INLINE V value_of(V x) { return x; }
template <class V, int n> INLINE V value_of(const Dual<V, n>& x) { return x.value; }

// A number of another value and so many times the derivatives.
template <class V> INLINE V chained(V value, V, V) { return value; }
template <class V, int n> INLINE Dual<V, n> chained(V value, V slope, const Dual<V, n>& x) {
  Dual<V, n> found = {value, {}};
  for (int k = 0; k < n; k++) found.in[k] = slope * x.in[k];
  return found;
}

#define FIELDWISE(rule_value, rule)                   \
  {                                                   \
    Dual<V, n> found = {rule_value, {}};              \
    for (int k = 0; k < n; k++) found.in[k] = (rule); \
    return found;                                     \
  }

template <class V, int n> INLINE Dual<V, n> operator+(const Dual<V, n>& x, const Dual<V, n>& y)
FIELDWISE(x.value + y.value, x.in[k] + y.in[k])
template <class V, int n> INLINE Dual<V, n> operator-(const Dual<V, n>& x, const Dual<V, n>& y)
FIELDWISE(x.value - y.value, x.in[k] - y.in[k])
template <class V, int n> INLINE Dual<V, n> operator*(const Dual<V, n>& x, const Dual<V, n>& y)
FIELDWISE(x.value* y.value, x.value* y.in[k] + y.value * x.in[k])
template <class V, int n> INLINE Dual<V, n> operator-(const Dual<V, n>& x) FIELDWISE(-x.value, -x.in[k])

template <class V, int n> INLINE Dual<V, n> operator+(const Dual<V, n>& x, V y) { return chained(x.value + y, V{} + 1, x); }
template <class V> INLINE V times(V x, double y) { return x * Number<V>(y); }
template <class V, int n> INLINE Dual<V, n> times(const Dual<V, n>& x, double y) {
  return chained(x.value * Number<V>(y), all<V>(y), x);
}
template <class V> INLINE V one_less(V x) { return 1 - x; }
template <class V, int n> INLINE Dual<V, n> one_less(const Dual<V, n>& x) { return chained(1 - x.value, V{} - 1, x); }

template <class V> INLINE V choose(Wholes<V> mask, V x, V y) { return mask ? x : y; }
template <class V, int n> INLINE Dual<V, n> choose(Wholes<V> mask, const Dual<V, n>& x, const Dual<V, n>& y)
FIELDWISE(mask ? x.value : y.value, mask ? x.in[k] : y.in[k])

// Of equal numbers, the derivative of their mean.
template <class V> INLINE V larger(V x, V y) { return max(x, y); }
template <class V, int n> INLINE Dual<V, n> larger(const Dual<V, n>& x, const Dual<V, n>& y)
FIELDWISE(max(x.value, y.value),
          x.value > y.value ? x.in[k] : (y.value > x.value ? y.in[k] : (x.in[k] + y.in[k]) / 2))

template <class V> INLINE V smaller(V x, V y) { return min(x, y); }
template <class V, int n> INLINE Dual<V, n> smaller(const Dual<V, n>& x, const Dual<V, n>& y)
FIELDWISE(min(x.value, y.value),
          x.value < y.value ? x.in[k] : (y.value < x.value ? y.in[k] : (x.in[k] + y.in[k]) / 2))

template <class N> INLINE N size_of(const N& x) {
  typedef Plain<N> V;
  V value = value_of(x), sign = value > 0 ? V{} + 1 : (value < 0 ? V{} - 1 : V{});
  return chained(abs(value), sign, x);
}
template <class N> INLINE N largest_of(const N& x, const N& y) { return larger(size_of(x), size_of(y)); }

// Kept in an interval, with the derivative of whatever is not moved.
template <class N> INLINE N kept(const N& x, double low, double high) {
  typedef Plain<N> V;
  V value = value_of(x);
  return chained(within(value, low, high), (value >= Number<V>(low)) & (value <= Number<V>(high)) ? V{} + 1 : V{}, x);
}

template <class N> INLINE N tanh_of(const N& x) {
  Plain<N> t = tanh(value_of(x));
  return chained(t, 1 - t * t, x);
}
template <class N> INLINE N sigmoid_of(const N& x) {
  Plain<N> s = sigmoid(value_of(x));
  return chained(s, s * (1 - s), x);
}

// tanh(x) / x for x >= 0.
template <class N> INLINE N over_of(const N& x) {
  typedef Plain<N> V;
  V width = at_least(value_of(x), 1e-30), over = tanh(width) / width, far = at_least(width, 1e-2), near = at_most(width, 1e-2);
  V quotient = (1 - over * far * over * far - over) / far;
  V series = (near * near * Number<V>(8.0 / 15) - Number<V>(2.0 / 3)) * near;
  return chained(over, width > Number<V>(1e-2) ? quotient : series, x);
}

// A point that is held, but follows an end on which it lies.
template <class V> INLINE V held(V x, V, V) { return x; }
template <class V, int n> INLINE Dual<V, n> held(V x, const Dual<V, n>& low, const Dual<V, n>& high)
FIELDWISE(x, !(x > low.value) ? low.in[k] : (!(x < high.value) ? high.in[k] : V{}))
