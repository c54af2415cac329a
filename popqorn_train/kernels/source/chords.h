// The chords of tanh and sigmoid, and of both factors of a product, with what they miss: see
// relaxations/strips.py. Written for plain numbers and for those with derivatives.
#pragma once
#include "box.h"
#include "dual.h"

// slope x + middle, give or take half.
template <class N> struct Line {
  N slope, middle, half;
};

template <class N> INLINE N secant_of_tanh(const N& low, const N& high) {
  return over_of(high - low) * one_less(tanh_of(low) * tanh_of(high));
}

template <bool curved, class N> INLINE N function_of(const N& x) {
  if constexpr (curved) return tanh_of(x);
  else return sigmoid_of(x);
}

// Where f(x) - slope x may be greatest beside the left end.
template <bool curved, class V> INLINE Peak<V> highest(V slope, V low, V high, V at_low, V at_high) {
  V one = V{} + 1;
  return curved ? argmax_tanh(one, slope, low, high, at_low, at_high)
                : argmax_sigmoid(one, slope, low, high, at_low, at_high);
}

// Greatest f(x) - slope x on an interval; tanh or sigmoid.
template <bool curved, class N> static N intercept(const N& slope, const N& low, const N& high) {
  typedef Plain<N> V;
  V a = value_of(slope), l = value_of(low), u = value_of(high);
  V at_low = function_of<curved>(l), at_high = function_of<curved>(u);
  Peak<V> inner = highest<curved>(a, l, u, at_low, at_high);
  V x = inner.value - at_low - a * (inner.at - l) > 0 ? inner.at : l;
  N point = held(x, low, high);
  V room = slack(largest(at_low, at_high), a * largest(l, u), V{});
  return function_of<curved>(point) - slope * point + room;
}

// The line of some slope through the middle of what it misses; f(-x) = turn - f(x).
template <bool curved, class N> static Line<N> line(const N& slope, const N& low, const N& high) {
  typedef Plain<N> V;
  V turn = all<V>(curved ? 0 : 1);
  N top = intercept<curved>(slope, low, high), bottom = -intercept<curved>(slope, -high, -low) + turn;
  N half = times(top - bottom, 0.5) + slack(value_of(top), value_of(bottom), V{});
  return {slope, times(top + bottom, 0.5), half};
}

// The slope of the line of least area above tanh, see tanh_lines.py.
template <class N> static N slope_above(const N& low, const N& high) {
  typedef Plain<N> V;
  V l = value_of(low), u = value_of(high), at_low = tanh(l), left = at_least(-l, 0);
  V d = clip(left / (left + Number<V>(4.42)) * Number<V>(2.34), l, u);
  V crude = (tanh(d) - at_low) / at_least(d - l, 1e-30);
  d = clip(left > 0 ? artanh_root(at_least(crude, 0)) : V{}, l, u);
  N middle = times(low + high, 0.5), at_middle = tanh_of(middle);
  N chord = secant_of_tanh(low, held(d, low, high));
  return choose(value_of(middle) > d, one_less(at_middle * at_middle), chord);
}

template <class N> static Line<N> tanh_strip(const N& low, const N& high) {
  N mean = times(slope_above(low, high) + slope_above(-high, -low), 0.5);
  Line<N> one = line<true>(secant_of_tanh(low, high), low, high), other = line<true>(mean, low, high);
  auto better = value_of(other.half) < value_of(one.half);
  return {choose(better, other.slope, one.slope), choose(better, other.middle, one.middle),
          choose(better, other.half, one.half)};
}

template <class N> static Line<N> sigmoid_strip(const N& low, const N& high) {
  N slope = times(secant_of_tanh(times(low, 0.5), times(high, 0.5)), 0.25);
  return line<false>(slope, low, high);
}

template <class N> struct Reach {
  N low, high;
};

// Range of the square of what lies between two ends.
template <class N> INLINE Reach<N> squared(const N& low, const N& high) {
  typedef Plain<N> V;
  N inside = larger(low, -high), zero = chained(V{}, V{}, low);
  N near = choose(value_of(inside) > 0, inside, zero);
  return {near * near, larger(low * low, high * high)};
}

template <class N> struct Chords {
  N a, b, middle, half;
};

// x: lx and ux; y: ly and uy; bands: of the sum and of the difference.
template <bool curved, class N> static Chords<N> chords_of(const N* ends) {
  typedef Plain<N> V;
  const N &lx = ends[0], &ux = ends[1], &ly = ends[2], &uy = ends[3];
  Line<N> gate = sigmoid_strip(lx, ux);
  N xm = times(lx + ux, 0.5), hx = times(ux - lx, 0.5), ym = times(ly + uy, 0.5), hy = times(uy - ly, 0.5);
  N s = gate.middle + gate.slope * xm;
  N slope = chained(V{} + 1, V{}, ly), t = ym, rest = gate.half * largest_of(ly, uy);
  if constexpr (curved) {
    Line<N> other = tanh_strip(ly, uy);
    rest = gate.half * largest_of(tanh_of(ly), tanh_of(uy)) + other.half * (size_of(s) + gate.slope * hx);
    slope = other.slope, t = other.middle + other.slope * ym;
  }
  Reach<N> sums = squared(ends[4], ends[5]), differences = squared(ends[6], ends[7]);
  N least = kept(times(sums.low - differences.high, 0.25), -1, 4);
  N most = kept(times(sums.high - differences.low, 0.25), -4, 1);
  N weight = gate.slope * slope * hx * hy, a = t * gate.slope, b = s * slope;
  V at_s = value_of(s), in_x = value_of(a) * largest(value_of(lx), value_of(ux));
  V size_y = largest(value_of(ly), value_of(uy)), in_y = value_of(b) * size_y;
  V room = 4 * (slack(at_s * size_y, in_x, in_y) + slack(at_s * value_of(t), V{}, V{}));
  N middle = s * t - a * xm - b * ym + times(weight * (most + least), 0.5);
  return {a, b, middle, times(weight * (most - least), 0.5) + rest + room};
}

// The same as functions of all ends, which write what they find.
template <class N> INLINE void write(const Chords<N>& s, N* found) {
  found[0] = s.a, found[1] = s.b, found[2] = s.middle, found[3] = s.half;
}
template <class N> INLINE void write(const Line<N>& s, N* found) {
  found[0] = s.slope, found[1] = s.middle, found[2] = s.half;
}

struct MemoryChords {
  template <class N> void operator()(const N* at, N* found) const { write(chords_of<false>(at), found); }
};
struct CurvedChords {
  template <class N> void operator()(const N* at, N* found) const { write(chords_of<true>(at), found); }
};
struct TanhStrip {
  template <class N> void operator()(const N* at, N* found) const { write(tanh_strip(at[0], at[1]), found); }
};
struct SigmoidStrip {
  template <class N> void operator()(const N* at, N* found) const { write(sigmoid_strip(at[0], at[1]), found); }
};
