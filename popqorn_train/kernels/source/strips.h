// One plane through a product, as far from its lower as from its upper side: see
// relaxations/gap_search.py.
#pragma once
#include "polygon.h"

constexpr int side_pieces = 4, strip_points = 8 * side_pieces, strip_steps = 4;

template <class V> struct Strip {
  V a, b, middle, half;
};

// Points on all sides, anticlockwise, and the steps from one to the next.
template <class V> struct Sides8 {
  V p[strip_points], q[strip_points], f[strip_points], dx[8], dy[8];
};

template <bool curved, class V>
static void set_sides(Sides8<V>& on, const Bands<V>& bands, const Scale<V>& scale) {
  V corner_p[8], corner_q[8];
  corners(bands, corner_p, corner_q);
  ROLLED for (int side = 0; side < 8; side++) {
    int next = (side + 1) % 8;
    V dp = (corner_p[next] - corner_p[side]) / side_pieces, dq = (corner_q[next] - corner_q[side]) / side_pieces;
    on.dx[side] = dp * scale.half_x, on.dy[side] = dq * scale.half_y;
    ROLLED for (int k = 0, i = side * side_pieces; k < side_pieces; k++, i++) {
      on.p[i] = corner_p[side] + Number<V>(k) * dp, on.q[i] = corner_q[side] + Number<V>(k) * dq;
      on.f[i] = product<curved>(scale.x + scale.half_x * on.p[i], scale.y + scale.half_y * on.q[i]);
    }
  }
}

template <class V> struct Range {
  V low, high;
};

template <bool curved, class V> INLINE Range<V> range_of(const Box<V>& box) {
  V low = second<curved>(box.ly), high = second<curved>(box.uy), shut = sigmoid(box.lx), gate = sigmoid(box.ux);
  return {min(shut * low, gate * low), max(shut * high, gate * high)};
}

// What a product may be on a box: values, first and second derivatives.
template <class V> struct Shape {
  Range<V> f;
  V x, y, bend_x, bend_y, mixed;
};

template <bool curved, class V> static Shape<V> shape_of(const Box<V>& box) {
  V height = largest(second<curved>(box.ly), second<curved>(box.uy));
  V shut = sigmoid(box.lx), gate = sigmoid(box.ux);
  V rise = sigmoid_slope(clip(V{}, box.lx, box.ux));
  V slope = curved ? tanh_slope(clip(V{}, box.ly, box.uy)) : V{} + 1;
  Shape<V> shape;
  shape.f = range_of<curved>(box);
  shape.x = rise * height, shape.y = slope * gate, shape.mixed = rise * slope;
  shape.bend_x = at_most(rise * largest(1 - 2 * shut, 1 - 2 * gate), 0.0963) * height;
  shape.bend_y = at_most(2 * height * slope, curved ? 0.7699 : 0) * gate;
  return shape;
}

// The points at which something is greatest and least, and by how much they differ.
template <class V> struct Extremes {
  V gap, in_p, in_q;
};

template <class V> static Extremes<V> extremes(const Sides8<V>& on, const V (&rest)[strip_points]) {
  V up = rest[0], down = rest[0], up_p = on.p[0], up_q = on.q[0], down_p = up_p, down_q = up_q;
  ROLLED for (int i = 1; i < strip_points; i++) {
    auto above = rest[i] > up, below = rest[i] < down;
    up = above ? rest[i] : up, up_p = above ? on.p[i] : up_p, up_q = above ? on.q[i] : up_q;
    down = below ? rest[i] : down, down_p = below ? on.p[i] : down_p, down_q = below ? on.q[i] : down_q;
  }
  return {up - down, up_p - down_p, up_q - down_q};
}

template <bool curved, class V> static Slopes<V> first_slopes(const Box<V>& box, const Scale<V>& scale) {
  V low = second<curved>(box.ly), high = second<curved>(box.uy);
  V in_y = curved ? tanh_secant(box.ly, box.uy, low, high) : V{} + 1;
  Gates<V> gates(box);
  V a = (low + high) / 2 * sigmoid_secant(box, gates), b = (gates.low + gates.high) / 2 * in_y;
  return {a * scale.half_x, b * scale.half_y};
}

// Whether a side is wider than rounding, see Rectangle.flat in domain.py.
template <class V> INLINE Wholes<V> wide(V low, V high) {
  return high - low > 128 * Of<V>::eps * (1 + abs(low + high));
}

// Slopes in p and q; along a side without width they stay those of the chord.
template <bool curved, class V>
static Slopes<V> narrowest(const Sides8<V>& on, const Box<V>& box, const Scale<V>& scale) {
  Slopes<V> s = first_slopes<curved>(box, scale), best = s;
  V rest[strip_points];
  ROLLED for (int i = 0; i < strip_points; i++) rest[i] = on.f[i] - s.a * on.p[i] - s.b * on.q[i];
  V turn = extremes(on, rest).gap * Number<V>(1e-3 / (strip_points - 1));
  ROLLED for (int i = 0; i < strip_points; i++) rest[i] += turn * Number<V>(i);
  V best_gap = all<V>(infinity());
  Number<V> share = 0.15;
  ROLLED for (int k = 0;; k++, share *= Number<V>(0.7)) {
    Extremes<V> ends = extremes(on, rest);
    auto better = ends.gap < best_gap;
    best = {better ? s.a : best.a, better ? s.b : best.b}, best_gap = min(ends.gap, best_gap);
    if (k == strip_steps) return best;
    V in_p = wide(box.lx, box.ux) ? ends.in_p : V{}, in_q = wide(box.ly, box.uy) ? ends.in_q : V{};
    V step = share * ends.gap / at_least(in_p * in_p + in_q * in_q, 1e-6);
    s.a += step * in_p, s.b += step * in_q;
    ROLLED for (int i = 0; i < strip_points; i++) rest[i] -= step * (in_p * on.p[i] + in_q * on.q[i]);
  }
}

template <class V> INLINE V peak(V bend, V rise) {
  V most = bend / 8, share = at_least(1 - rise / at_least(4 * most, Of<V>::tiny), 0);
  return most * share * share;
}

// The greatest and the least of what a plane leaves of f.
template <class V> struct Rest {
  V top, bottom;
};

// On the border, for slopes in p and q.
template <class V> static Rest<V> on_border(const Sides8<V>& on, const Shape<V>& shape, Slopes<V> s) {
  V top = all<V>(-infinity()), bottom = -top;
  ROLLED for (int i = 0; i < strip_points; i++) {
    int next = (i + 1) % strip_points, side = i / side_pieces;
    V plane = s.a * on.p[i] + s.b * on.q[i], beyond = s.a * on.p[next] + s.b * on.q[next];
    V here = on.f[i] - plane, after = on.f[next] - beyond, dx = on.dx[side], dy = on.dy[side];
    V plain = shape.bend_x * dx * dx + shape.bend_y * dy * dy, mixed = 2 * shape.mixed * dx * dy;
    V high = max(here, after) + peak(plain + at_least(-mixed, 0), abs(after - here));
    V low = min(here, after) - peak(plain + at_least(mixed, 0), abs(after - here));
    top = max(top, min(high, shape.f.high - min(plane, beyond)));
    bottom = min(bottom, max(low, shape.f.low - max(plane, beyond)));
  }
  return {top, bottom};
}

// The local maximum inside, or minus infinity.
template <class V> static V highest_inside(const Box<V>& box, const Bands<V>& bands, const Scale<V>& scale, Slopes<V> s) {
  Held<V> held = inside<false>(box, bands, scale, s);
  V height = gap(product<true>(held.x, held.y), s, held.x, held.y) + held.miss;
  return held.there ? height : all<V>(-infinity());
}

// What rounding may take: of f, of the plane, and of the place of a point, which both are taken at.
template <bool curved, class V> static V room_of(const Box<V>& box, const Shape<V>& shape, Slopes<V> s) {
  V x = largest(box.lx, box.ux), y = largest(box.ly, box.uy);
  V height = sigmoid(box.ux) * largest(second<curved>(box.ly), second<curved>(box.uy));
  return 3 * (slack(height, s.a * x, s.b * y) + slack(shape.x * x, shape.y * y, V{}));
}

template <bool curved, class V> static Strip<V> strip(const Box<V>& box, const Bands<V>& bands) {
  Scale<V> scale(box);
  Box<V> wider = covered(box, scale);
  Sides8<V> on;
  set_sides<curved>(on, bands, scale);
  Shape<V> shape = shape_of<curved>(wider);
  Slopes<V> s = narrowest<curved>(on, box, scale);
  Rest<V> rest = on_border(on, shape, s);
  s = {s.a / scale.half_x, s.b / scale.half_y};
  V shift = s.a * scale.x + s.b * scale.y, top = rest.top - shift, bottom = rest.bottom - shift;
  if (curved) {
    Box<V> mirror = {wider.lx, wider.ux, -wider.uy, -wider.ly};
    Scale<V> mirror_scale(Box<V>{box.lx, box.ux, -box.uy, -box.ly});
    Bands<V> mirrored = {bands.diff_low, bands.diff_high, bands.sum_low, bands.sum_high};
    top = max(top, highest_inside(wider, bands, scale, s));
    bottom = min(bottom, -highest_inside(mirror, mirrored, mirror_scale, Slopes<V>{-s.a, s.b}));
  }
  V half = (top - bottom) / 2 + slack(top, bottom, V{}) + room_of<curved>(wider, shape, s);
  Range<V> f = range_of<curved>(box);
  V flat = (f.high - f.low) / 2 + slack(f.high, f.low, V{});
  auto level = flat < half;
  V middle = (level ? f.high + f.low : top + bottom) / 2;
  return {level ? V{} : s.a, level ? V{} : s.b, middle, level ? flat : half};
}
