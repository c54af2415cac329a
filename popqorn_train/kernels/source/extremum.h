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
};

// Where tanh' takes a value, right of 0; as good as infinite for a negative one, however small.
template <class V> INLINE V artanh_root(V ratio) {
  typedef Of<V> O;
  V inside = within(ratio, O::least, 1 - 2 * O::eps);
  V above = root(1 - inside) + 1;
  return ratio < 0 ? all<V>(1e30) : log(above * above / inside) / 2;
}

// Stationary point of weight tanh(y) - slope y that may be a maximum, for a positive weight.
template <class V> INLINE V argmax_tanh(V weight, V slope, V low, V high) {
  return clip(artanh_root(slope / at_least(weight, Of<V>::tiny)), low, high);
}

// The same of weight sigmoid(x) - slope x, for any weight.
template <class V> INLINE V argmax_sigmoid(V weight, V slope, V low, V high) {
  V ratio = (weight < 0 ? -slope : slope) * 4 / at_least(abs(weight), Of<V>::tiny);
  V x = 2 * artanh_root(ratio);
  return clip(weight < 0 ? -x : x, low, high);
}

// The best x on the edge of one y: sigmoid(x) y - slope x, and the gate there.
template <class V> struct Edge {
  V x, gate, height;
};

template <class V> static Edge<V> memory_edge(V slope, const Box<V>& box, const Gates<V>& gates, V y) {
  V inner = argmax_sigmoid(y, slope, box.lx, box.ux), end = y < 0 ? box.ux : box.lx;
  V at_inner = sigmoid(inner), at_end = y < 0 ? gates.high : gates.low;
  auto gains = y * (at_inner - at_end) > slope * (inner - end);
  V x = gains ? inner : end, gate = gains ? at_inner : at_end;
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
    typedef Of<V> O;
    V ratio = slope * scale, inside = within(ratio, O::least, 1 - 2 * O::eps), above = root(1 - inside) + 1;
    V free = ratio < 0 ? all<V>(1e30) : log(above * above / inside), gate = above / 2;
    free = y < 0 ? -free : free, gate = y < 0 ? 1 - gate : gate;
    gate = free > lx ? (free < ux ? gate : gate_high) : gate_low;
    V inner = clip(free, lx, ux);
    return y * (gate - at_end) > slope * (inner - end) ? inner : end;
  }
};

// The one local maximum of sigmoid(x) tanh(y) - a x - b y: nearly at x and y, where w = sigmoid(-x) and
// the slope in x is r instead of a.
template <class V> struct Inner {
  V x, y, w, r, w_peak, r_peak, a, b;
  Wholes<V> there;  // whether there is one at all
};

// From `w` to which other it lies for certain, and how much higher than at x and y it may be.
template <class V> struct Doubt {
  V far_w, miss;
};

template <class V> INLINE V over_w(V w, V beta) {
  return root(at_least((1 - w) * (beta - w), 10 * Of<V>::tiny));
}

template <class V> INLINE V x_at(V w) { return log((1 - w) / at_least(w, 10 * Of<V>::tiny)); }

template <class V> INLINE V y_at(V w, V b) {
  V ratio = within(b / (1 - w), 10 * Of<V>::tiny, 1), above = root(1 - ratio) + 1;
  return log(above * above / ratio) / 2;
}

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
  return {x_at(w), y_at(w, b), w, w * over_w(w, beta), w_peak, r_peak, a, b, found.there};
}

template <class V> static Doubt<V> doubt(const Inner<V>& on) {
  V room = on.r_peak * (4 * Of<V>::eps), missing = at_least(on.a - on.r, 0);
  V share = at_most((missing + 2 * room) / at_least(on.r_peak - on.r + room, Of<V>::tiny), 1);
  return {on.w + share * (on.w_peak - on.w), missing * at_least(on.x - x_at(on.w_peak), 0)};
}
