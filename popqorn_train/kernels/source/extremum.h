// Where a product less a plane is largest on an edge of a box, and its local maximum inside.
//
// The formulas, with their proofs, are those of relaxations/extremum.py and tanh_product.py.
#pragma once
#include "functions.h"

// An upper plane's slopes in x and y.
template <class V> struct Slopes {
  V a, b;
};

template <class V> struct Box {
  V lx, ux, ly, uy;

  Box mirrored() const { return {lx, ux, -uy, -ly}; }
};

// The gates at the ends of a box, and of its mirror image in y.
template <class V> struct Gates {
  V low, high;

  explicit Gates(const Box<V>& box) : low(sigmoid(box.lx)), high(sigmoid(box.ux)) {}

  // tanh of half the ends.
  V tanh_low() const { return 2 * low - 1; }
  V tanh_high() const { return 2 * high - 1; }
};

// Slope of the chord of sigmoid, a tanh four times as steep and half as wide.
template <class V> INLINE V sigmoid_secant(const Box<V>& box, const Gates<V>& gates) {
  return tanh_secant(box.lx / 2, box.ux / 2, gates.tanh_low(), gates.tanh_high()) / 4;
}

// Where tanh' takes a value, right of 0: tanh is t there, t^2 = 1 - ratio. Near 0 the fraction that the point
// is the logarithm of would lose digits, but t has them all.
template <class V> struct Steep {
  V ratio, t;

  explicit Steep(V slope) : ratio(within(slope, Of<V>::least, 1 - 2 * Of<V>::eps)), t(root(1 - ratio)) {}

  V twice() const {
    Fraction<V> f((1 + t) * (1 + t), ratio);
    f.s = f.n == 0 ? t : f.s;
    return log(f);
  }
};

// Twice that point; as good as infinite for a negative slope, however small.
template <class V> INLINE V twice_at(V slope, const Steep<V>& on) { return slope < 0 ? all<V>(1e30) : on.twice(); }

template <class V> INLINE V artanh_root(V slope) { return twice_at(slope, Steep<V>(slope)) / 2; }

// A point and the function there, which has the precision of `tanh` and `sigmoid`.
template <class V> struct Peak {
  V at, value;
};

// Kept on an interval, at whose ends the function is known.
template <class V> INLINE Peak<V> kept(Peak<V> free, V low, V high, V at_low, V at_high) {
  V value = free.at > low ? (free.at < high ? free.value : at_high) : at_low;
  return {clip(free.at, low, high), value};
}

// Stationary point of weight tanh(y) - slope y that may be a maximum, for a positive weight.
template <class V> INLINE Peak<V> argmax_tanh(V weight, V slope, V low, V high, V at_low, V at_high) {
  V ratio = slope / at_least(weight, Of<V>::tiny);
  Steep<V> on(ratio);
  return kept(Peak<V>{twice_at(ratio, on) / 2, on.t}, low, high, at_low, at_high);
}

// The same of weight sigmoid(x) - slope x, for any weight.
template <class V> INLINE Peak<V> argmax_sigmoid(V weight, V slope, V low, V high, V at_low, V at_high) {
  V ratio = (weight < 0 ? -slope : slope) * 4 / at_least(abs(weight), Of<V>::tiny);
  Steep<V> on(ratio);
  V x = twice_at(ratio, on), above = 1 + on.t;
  // Left of 0 the gate is (1 - t) / 2, without cancellation.
  Peak<V> free = {weight < 0 ? -x : x, (weight < 0 ? on.ratio / above : above) / 2};
  return kept(free, low, high, at_low, at_high);
}

// The best x on the edge of one y: sigmoid(x) y - slope x, and the gate there.
template <class V> struct Edge {
  V x, gate, height;
};

template <class V> static Edge<V> memory_edge(V slope, const Box<V>& box, const Gates<V>& gates, V y) {
  Peak<V> inner = argmax_sigmoid(y, slope, box.lx, box.ux, gates.low, gates.high);
  V end = y < 0 ? box.ux : box.lx, at_end = y < 0 ? gates.high : gates.low;
  auto gains = y * (inner.value - at_end) > slope * (inner.at - end);
  V x = gains ? inner.at : end, gate = gains ? inner.value : at_end;
  return {x, gate, gate * y - slope * x};
}

// The same edge for one slope after another, without the height: gates come from the root as they are.
template <class V> struct EdgeSearch {
  V lx, ux, y, gate_low, gate_high, end, at_end, scale;

  EdgeSearch(const Box<V>& box, const Gates<V>& gates, V y)
      : lx(box.lx), ux(box.ux), y(y), gate_low(gates.low), gate_high(gates.high) {
    end = y < 0 ? ux : lx, at_end = y < 0 ? gate_high : gate_low;
    scale = (y < 0 ? V{} - 4 : V{} + 4) / at_least(abs(y), Of<V>::tiny);
  }

  V x(V slope) const {
    V ratio = slope * scale;
    Steep<V> on(ratio);
    V x = twice_at(ratio, on), half = on.t / 2;
    Peak<V> inner = {y < 0 ? -x : x, Number<V>(0.5) + (y < 0 ? -half : half)};
    inner = kept(inner, lx, ux, gate_low, gate_high);
    return y * (inner.value - at_end) > slope * (inner.at - end) ? inner.at : end;
  }
};

// The one local maximum of sigmoid(x) tanh(y) - a x - b y: nearly at x and y, where w = sigmoid(-x), t = tanh(y)
// and the slope in x is r instead of a.
template <class V> struct Inner {
  V x, y, w, t, r, w_peak, r_peak, a, b;
  Wholes<V> there;  // whether there is one at all
};

// From `w` to which other it lies for certain, and how much higher than at x and y it may be.
template <class V> struct Doubt {
  V far_w, miss;
};

template <class V> INLINE V over_w(V w, V beta) {
  return root(at_least((1 - w) * (beta - w), 10 * Of<V>::tiny));
}

template <class V> INLINE V x_at(V w) { return log(Fraction<V>(1 - w, at_least(w, 10 * Of<V>::tiny))); }

template <class V> INLINE Steep<V> steep_at(V w, V b) { return Steep<V>(b / (1 - w)); }

template <class V> INLINE V y_at(V w, V b) { return steep_at(w, b).twice() / 2; }

// One step towards w over_w(w) = a from the left; the slope there is that below, over the height.
template <class V> INLINE V newton(V w, V a, V beta) {
  V square = at_least((1 - w) * (beta - w), 10 * Of<V>::tiny), height = root(square);
  V slope = square - w * (1 + beta - 2 * w) / 2;
  return w - (height * w - a) * height / max(slope, square * Of<V>::root3_eps);
}

template <class V> INLINE V peak_of(V beta) {
  V spread = 3 + 3 * beta;
  return 4 * beta / (root(at_least(spread * spread - 32 * beta, 10 * Of<V>::tiny)) + spread);
}

// `wanted` are the lanes that are looked at; where none is left, the rest is not worked out.
template <class V> static Inner<V> interior(Slopes<V> p, Wholes<V> wanted) {
  typedef Of<V> O;
  V b = within(p.b, 10 * O::tiny, 1 - 4 * O::eps), a = at_least(p.a, 10 * O::tiny), beta = 1 - b;
  V w_peak = peak_of(beta), r_peak = w_peak * over_w(w_peak, beta);
  auto room = (p.a > 0) & (p.b > 0) & (p.b < 1) & (r_peak * Number<V>(1 + 1e-3) > a);
  Inner<V> found = {};
  found.there = wanted & room;
  if (!any(found.there)) return found;
  V rho = at_most(a / at_least(r_peak, O::tiny), 1 - O::eps), least = min(a / root(beta), w_peak);
  V w = max(w_peak * rho / (root(1 - rho) + 1), least);
  for (int k = 0; k < O::newton_steps; k++) w = clip(newton(w, a, beta), least, w_peak);
  Steep<V> in_y = steep_at(w, b);
  return {x_at(w), in_y.twice() / 2, w, in_y.t, w * over_w(w, beta), w_peak, r_peak, a, b, found.there};
}

template <class V> static Doubt<V> doubt(const Inner<V>& on) {
  V room = on.r_peak * (4 * Of<V>::eps), missing = at_least(on.a - on.r, 0);
  V share = at_most((missing + 2 * room) / at_least(on.r_peak - on.r + room, Of<V>::tiny), 1);
  return {on.w + share * (on.w_peak - on.w), missing * at_least(on.x - x_at(on.w_peak), 0)};
}
