// Lines around tanh and sigmoid, of least area and closest at a point: see relaxations/lines.py and
// nearest_lines.py. The line below is that above the mirror image, where f(-x) = turn - f(x).
#pragma once
#include "chords.h"
#include "gradients.h"

// 0 where both ends are numbers whose difference is one too, else NaN.
template <class V> static V not_finite(V low, V high) {
  const Number<V> most = sizeof(Number<V>) == 4 ? Number<V>(1e37) : Number<V>(1e307);
  return (abs(low) <= most) & (abs(high) <= most) ? V{} : all<V>(not_a_number());
}

template <bool curved, class N> INLINE N secant(const N& low, const N& high) {
  if constexpr (curved) return secant_of_tanh(low, high);
  else return times(secant_of_tanh(times(low, 0.5), times(high, 0.5)), 0.25);
}

// A function, its slope and the slope of that.
template <class V> struct Bent {
  V value, slope, bend;
};

template <bool curved, class V> INLINE Bent<V> bent(V x) {
  if constexpr (curved) {
    V t = tanh(x), slope = 1 - t * t;
    return {t, slope, -2 * t * slope};
  } else {
    V s = sigmoid(x), slope = sigmoid_slope(x);
    return {s, slope, slope * (1 - 2 * s)};
  }
}

template <bool curved, class N> INLINE N slope_at(const N& x) {
  Bent<Plain<N>> at = bent<curved>(value_of(x));
  return chained(at.slope, at.bend, x);
}

// Right end of the straight part of the concave envelope, by Dinkelbach's iteration; none right of 0.
template <bool curved, class V> static V touching(V low, V high) {
  V slope = secant<curved>(low, high), at_low = function_of<curved>(low), at_high = function_of<curved>(high);
  for (int step = 0;; step++) {
    Peak<V> d = highest<curved>(slope, low, high, at_low, at_high);
    if (step == 3) return low < 0 ? d.at : low;
    slope = max(slope, (d.value - at_low) / at_least(d.at - low, 1e-30));
  }
}

template <class N> struct Above {
  N slope, top;
};

// The chord to the tangent point d; right of 0, where d is the left end, the tangent there.
template <bool curved, class N> static Above<N> straight(const N& low, const N& high, Plain<N> d) {
  N slope = choose(d > value_of(low), secant<curved>(low, held(d, low, high)), slope_at<curved>(low));
  return {slope, intercept<curved>(slope, low, high)};
}

// That of least area, which is lowest at the middle.
template <bool curved, class N> static Above<N> least_area(const N& low, const N& high) {
  N slope = low;
  if constexpr (curved) {
    slope = slope_above(low, high);
  } else {
    Plain<N> d = touching<false>(value_of(low), value_of(high));
    N middle = times(low + high, 0.5), chord = secant<false>(low, held(d, low, high));
    slope = choose(d > value_of(middle), chord, slope_at<false>(middle));
  }
  return {slope, intercept<curved>(slope, low, high)};
}

// Slope and intercept below and above.
template <bool curved, class N> INLINE void write(const Above<N>& above, const Above<N>& mirrored, N* found) {
  typedef Plain<N> V;
  found[0] = mirrored.slope, found[1] = -mirrored.top, found[2] = above.slope, found[3] = above.top;
  if (!curved) found[1] = found[1] + (V{} + 1) + -slack(value_of(mirrored.top), V{} + 1, V{});
}

template <bool curved> struct LeastArea {
  template <class N> void operator()(const N* at, N* found) const {
    write<curved>(least_area<curved>(at[0], at[1]), least_area<curved>(-at[1], -at[0]), found);
  }
};

// The lines of one unit that are closest at one point after another: the straight part, or beyond its
// end a tangent, whose intercept is twice the slack higher, since its slope is rounded too.
template <bool curved, class V> struct Closest {
  V low, high, right, left, nan, at_low, at_high, flat[4];

  Closest(V low, V high) : low(low), high(high), nan(not_finite(low, high)) {
    right = touching<curved>(low, high), left = touching<curved>(-high, -low);
    at_low = function_of<curved>(low), at_high = function_of<curved>(high);
    straight_parts(low, high, flat);
  }

  template <class N> void straight_parts(const N& from, const N& to, N* found) const {
    write<curved>(straight<curved>(from, to, right), straight<curved>(-to, -from, left), found);
  }

  void lines(V point, V (&found)[4]) const {
    V x = clip(point, low, high);
    Bent<V> at = bent<curved>(x);
    V room = 2 * slack(largest(at_low, at_high), at.slope * largest(low, high), V{});
    V tangent = at.value - at.slope * x;
    V above = max(tangent, at_low - at.slope * low) + room, below = min(tangent, at_high - at.slope * high) - room;
    auto before = -x > left, beyond = x > right;
    found[0] = (before ? at.slope : flat[0]) + nan, found[1] = (before ? below : flat[1]) + nan;
    found[2] = (beyond ? at.slope : flat[2]) + nan, found[3] = (beyond ? above : flat[3]) + nan;
  }

  // Adds what a tangent is worth to the ends; to `rest` what the straight part is worth, and the values
  // at the ends.
  void gradient(V point, const V (&worth)[4], V& of_low, V& of_high, V (&rest)[6]) const {
    V x = clip(point, low, high), none = V{};
    Bent<V> at = bent<curved>(x);
    V tangent = at.value - at.slope * x;
    auto before = -x > left, beyond = x > right;
    for (int k = 0; k < 4; k++) rest[k] += (k < 2 ? before : beyond) ? none : worth[k];
    V below = before ? worth[1] : none, above = beyond ? worth[3] : none;
    V at_end = share(at_low - at.slope * low - tangent) * above;
    V at_other = share(tangent - at_high + at.slope * high) * below;
    V of_slope = (before ? worth[0] : none) + (beyond ? worth[2] : none);
    of_slope -= at_end * low + at_other * high + (above + below - at_end - at_other) * x;
    of_low -= at_end * at.slope, of_high -= at_other * at.slope, rest[4] += at_end, rest[5] += at_other;
    on_ends(of_slope * at.bend, point, low, high, of_low, of_high);
  }

  // Of an intercept, that of the end and not of the tangent.
  static V share(V gain) { return gain > 0 ? V{} + 1 : (gain < 0 ? V{} : all<V>(0.5)); }

  // The rest of the gradient, from what it was worth in all rows.
  void finish(const V (&rest)[6], V& of_low, V& of_high) const {
    Dual<V, 2> from = {low, {V{} + 1, V{}}}, to = {high, {V{}, V{} + 1}}, found[4];
    straight_parts(from, to, found);
    for (int k = 0; k < 4; k++) of_low += rest[k] * found[k].in[0], of_high += rest[k] * found[k].in[1];
    of_low += rest[4] * bent<curved>(low).slope, of_high += rest[5] * bent<curved>(high).slope;
  }
};
