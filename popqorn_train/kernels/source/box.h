// The greatest gap over a box: max sigmoid(x) g(y) - a x - b y, raised by what rounding may take.
//
// sigmoid and tanh are within 2 eps of their values, relatively, so that a product is within 4 eps. Where an edge
// is highest, the point is within 4 eps and the function has the value of the exact point (extremum.h), so that
// slope and coordinate give a product within 4.5 eps; x inside is within eps, and its slope a quarter of
// tanh(y) at most. The difference from the plane adds 1.5 eps of the largest term. 8 eps of the sum of the
// largest terms cover all of it, and 1e-30 the numbers below the smallest normal one. A gate counts as 1e-28
// at least, since ratios of slopes below `least` are taken for `least`.
#pragma once
#include "extremum.h"

template <class V> INLINE V slack(V height, V in_x, V in_y) {
  return (abs(height) + abs(in_x) + abs(in_y)) * (8 * Of<V>::eps) + Number<V>(1e-30);
}

template <class V> INLINE V counted(V gate) { return at_least(gate, 1e-28); }

// A point with both factors, and how high sigmoid(x) tanh(y) - a x - b y is there.
template <class V> struct High {
  V x, y, gate, value, height;
};

template <class V> INLINE High<V> higher(High<V> one, High<V> other) {
  auto mask = other.height > one.height;
  return {mask ? other.x : one.x, mask ? other.y : one.y, mask ? other.gate : one.gate,
          mask ? other.value : one.value, max(other.height, one.height)};
}

template <class V> INLINE V gap(V f, Slopes<V> p, V x, V y) { return f - p.a * x - p.b * y; }

// A box, and its gates and values at the ends, which every question needs.
template <class V> struct Curved {
  Box<V> box;
  V gate_low, gate_high, value_low, value_high;
  Wholes<V> roomy;  // whether there may be a local maximum inside, see tanh_product.py

  explicit Curved(const Box<V>& of) : Curved(of, Gates<V>(of), tanh(of.ly), tanh(of.uy)) {}

  Curved(const Box<V>& of, const Gates<V>& gates, V value_low, V value_high)
      : box(of), gate_low(gates.low), gate_high(gates.high), value_low(value_low), value_high(value_high) {
    V t = at_least(value_high, 0);
    roomy = t * t * (3 * gate_high - 1) + gate_high > Number<V>(1 - 1e-3);
  }

  Curved mirrored(const Gates<V>& gates) const { return Curved(box.mirrored(), gates, -value_high, -value_low); }
};

// The best point of an edge along y, and of one along x.
template <class V> INLINE High<V> side(const Curved<V>& on, Slopes<V> p, V x, V gate) {
  V low = on.box.ly;
  Peak<V> y = argmax_tanh(gate, p.b, low, on.box.uy, on.value_low, on.value_high);
  V height = gate * y.value - p.b * y.at, corner = gate * on.value_low - p.b * low;
  auto gains = height > corner;
  return {x, gains ? y.at : low, gate, gains ? y.value : on.value_low, max(height, corner) - p.a * x};
}

template <class V> INLINE High<V> end(const Curved<V>& on, Slopes<V> p, V y, V value) {
  Peak<V> x = argmax_sigmoid(value, p.a, on.box.lx, on.box.ux, on.gate_low, on.gate_high);
  return {x.at, y, x.value, value, gap(x.value * value, p, x.at, y)};
}

// Where sigmoid(x) tanh(y) - a x - b y is largest, without allowance; a search may miss the last digits.
template <bool search, class V> static High<V> argmax_curved(const Curved<V>& on, Slopes<V> p) {
  const Box<V>& box = on.box;
  High<V> best = higher(side(on, p, box.lx, on.gate_low), side(on, p, box.ux, on.gate_high));
  best = higher(best, end(on, p, box.ly, on.value_low));
  best = higher(best, end(on, p, box.uy, on.value_high));
  Inner<V> inner = interior(p, on.roomy);
  if (!any(inner.there)) return best;
  Peak<V> x = kept(Peak<V>{inner.x, 1 - inner.w}, box.lx, box.ux, on.gate_low, on.gate_high);
  Peak<V> y = kept(Peak<V>{inner.y, inner.t}, box.ly, box.uy, on.value_low, on.value_high);
  Doubt<V> of = search ? Doubt<V>{inner.w, V{}} : doubt(inner);
  const Number<V> most = 1 + 4 * Of<V>::eps;
  auto inside = inner.there & (inner.w + on.gate_low < most) & (of.far_w + on.gate_high > 2 - most);
  V height = gap(x.value * y.value, p, x.at, y.at) + of.miss;
  auto gains = inside & (height > best.height);
  return {gains ? x.at : best.x, gains ? y.at : best.y, gains ? x.value : best.gate, gains ? y.value : best.value,
          gains ? height : best.height};
}

template <class V> static V curved_top(const Curved<V>& on, Slopes<V> p) {
  const Box<V>& box = on.box;
  V size = largest(box.ly, box.uy);
  V room = slack(on.gate_high * tanh(size), p.a * largest(box.lx, box.ux), p.b * size);
  return argmax_curved<false>(on, p).height + room;
}

// The same of sigmoid(x) y, which is linear in y.
template <class V> static V memory_top(const Box<V>& box, const Gates<V>& gates, Slopes<V> p) {
  V low = memory_edge(p.a, box, gates, box.ly).height - p.b * box.ly;
  V high = memory_edge(p.a, box, gates, box.uy).height - p.b * box.uy;
  V size = largest(box.ly, box.uy);
  return max(low, high) + slack(counted(gates.high) * size, p.b * size, p.a * largest(box.lx, box.ux));
}

// The lowest plane above sigmoid(x) y for a slope in x, see memory_planes.py.
template <class V> struct Plane {
  V a, b, top;
};

// From the best point of one edge to that of the other: the slope, before it is kept among the gates.
template <class V> struct Between {
  V slope, width;
  Wholes<V> narrow;
};

template <class V> INLINE Between<V> between_edges(const Box<V>& box, const Edge<V>& low, const Edge<V>& high) {
  V width = box.uy - box.ly;
  auto narrow = width < Of<V>::narrow;
  V divisor = narrow ? V{} + 1 : width;
  return {narrow ? (low.gate + high.gate) / 2 : (high.height - low.height) / divisor, divisor, narrow};
}

template <class V> static Plane<V> memory_plane(const Box<V>& box, const Gates<V>& gates, V a) {
  Edge<V> low = memory_edge(a, box, gates, box.ly), high = memory_edge(a, box, gates, box.uy);
  V free = between_edges(box, low, high).slope;
  V b = clip(free, gates.low, gates.high), size = largest(box.ly, box.uy);
  V top = max(low.height - b * box.ly, high.height - b * box.uy);
  return {a, b, top + slack(counted(gates.high) * size, b * size, a * largest(box.lx, box.ux))};
}
