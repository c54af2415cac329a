// Gradients of planes on octagons, as torch has them for the same planes: where the octagon gives the
// intercept, its highest point moves with the corners of its side (relaxations/octagon.py).
#pragma once
#include "gradients.h"

// The gradient in all ends of an octagon.
template <class V> struct OfOctagon {
  Box<V> box;
  V bands[4];
};

// A coordinate of a point that moves with the corners of its side, with derivatives in the bands.
template <class V> INLINE Dual<V, 4> along(const Dual<V, 4> (&corner)[8], const Spot<V>& spot) {
  Dual<V, 4> found = {};
  ROLLED for (int side = 0; side < 8; side++) {
    V here = spot.side == Number<V>(side) ? V{} + 1 : V{}, of_stop = here * spot.share, of_start = here - of_stop;
    const Dual<V, 4>&start = corner[side], &stop = corner[(side + 1) % 8];
    found = found + chained(of_start * start.value, of_start, start) + chained(of_stop * stop.value, of_stop, stop);
  }
  return found;
}

// What is worth something at a coordinate that lies `at` half widths from the middle, in the ends of its
// interval and in the bands.
template <class V>
INLINE void of_place(V worth, const Dual<V, 4>& at, V middle, V half, V low, V high, V& of_low, V& of_high,
                     V (&of_bands)[4]) {
  V of_half = max(high - middle, middle - low) < half ? V{} : worth * at.value;  // of no width, see `Scale`
  of_low += (worth - of_half) / 2, of_high += (worth + of_half) / 2;
  for (int k = 0; k < 4; k++) of_bands[k] += worth * half * at.in[k];
}

// Where the octagon gives the intercept; what is left is worth something over the box.
template <bool curved, class V>
static Worth<V> of_cut(const Box<V>& box, const Bands<V>& bands, const Border<V>& on, Plane<V> over_box, Worth<V> worth,
                       OfOctagon<V>& of) {
  Scale<V> scale(box);
  Spot<V> spot = octagon_spot<curved>(box, bands, scale, on, Slopes<V>{over_box.a, over_box.b});
  V top = spot.height < over_box.top ? worth.top : V{};
  V gate = sigmoid(spot.x), value = second<curved>(spot.y), steep = curved ? 1 - value * value : V{} + 1;
  V of_x = top * spot.moves_x * (gate * (1 - gate) * value - over_box.a);
  V of_y = top * spot.moves_y * (gate * steep - over_box.b);
  Bands<Dual<V, 4>> ends = {{bands.sum_low, {}}, {bands.sum_high, {}}, {bands.diff_low, {}}, {bands.diff_high, {}}};
  ends.sum_low.in[0] = ends.sum_high.in[1] = ends.diff_low.in[2] = ends.diff_high.in[3] = V{} + 1;
  Dual<V, 4> p[8], q[8];
  corners(ends, p, q);
  of_place(of_x, along(p, spot), scale.x, scale.half_x, box.lx, box.ux, of.box.lx, of.box.ux, of.bands);
  of_place(of_y, along(q, spot), scale.y, scale.half_y, box.ly, box.uy, of.box.ly, of.box.uy, of.bands);
  return {worth.a - top * spot.x, worth.b - top * spot.y, worth.top - top};
}

// The highest point of an edge along x of sigmoid(x) y, which gives the intercept over a box.
template <class V> INLINE High<V> on_edge(const Box<V>& box, const Gates<V>& gates, Slopes<V> slopes, V y) {
  Edge<V> edge = memory_edge(slopes.a, box, gates, y);
  return {edge.x, y, edge.gate, y, edge.height - slopes.b * y};
}

// Of slopes that have no gradient.
template <bool curved, class V> static Box<V> of_held(const Box<V>& box, Slopes<V> slopes, V top) {
  Gates<V> gates(box);
  High<V> best = curved ? argmax_curved<false>(Curved<V>(box), slopes)
                        : higher(on_edge(box, gates, slopes, box.ly), on_edge(box, gates, slopes, box.uy));
  V steep = curved ? 1 - best.value * best.value : V{} + 1;
  Box<V> of = {V{}, V{}, V{}, V{}};
  on_ends(top * (best.gate * (1 - best.gate) * best.value - slopes.a), best.x, box.lx, box.ux, of.lx, of.ux);
  on_ends(top * (best.gate * steep - slopes.b), best.y, box.ly, box.uy, of.ly, of.uy);
  return of;
}

template <bool curved, class V>
static OfOctagon<V> of_octagon(const Box<V>& box, const Bands<V>& bands, const Border<V>& on, const Choice<V>& choice,
                               Slopes<V> slopes, Worth<V> worth) {
  Gates<V> gates(box);
  V over_box = curved ? curved_top(Curved<V>(box), slopes) : memory_top(box, gates, slopes);
  OfOctagon<V> of = {};
  Worth<V> left = of_cut<curved>(box, bands, on, Plane<V>{slopes.a, slopes.b, over_box}, worth, of);
  Box<V> rest;
  if (choice.tilted) {
    rest = of_held<curved>(box, slopes, left.top);
  } else if (curved) {
    rest = of_curved(Curved<V>(box), chord_in_x(box, gates), choice.share, left);
  } else {
    rest = of_memory(box, gates, chord_in_x(box, gates), choice.share, left);
  }
  of.box = {of.box.lx + rest.lx, of.box.ux + rest.ux, of.box.ly + rest.ly, of.box.uy + rest.uy};
  return of;
}

// Of both planes, whose slopes are known, as `enclose` of units.h has them.
template <bool curved, class V>
static void of_both(const Box<V>& box, const Bands<V>& bands, const Choice<V>& choice, const V (&planes)[6],
                      const V (&worth)[6], V (&of_ends)[8]) {
  Border<V> on;
  set_border<curved>(on, box, bands, Scale<V>(box));
  Box<V> mirror = box.mirrored();
  Bands<V> turned = {bands.diff_low, bands.diff_high, bands.sum_low, bands.sum_high};
  Border<V> image = mirrored<curved>(on, mirror, Scale<V>(mirror));
  OfOctagon<V> upper = of_octagon<curved>(box, bands, on, choice, {planes[3], planes[4]}, {worth[3], worth[4], worth[5]});
  OfOctagon<V> lower =
      of_octagon<curved>(mirror, turned, image, choice, {-planes[0], planes[1]}, {-worth[0], worth[1], -worth[2]});
  of_ends[0] = upper.box.lx + lower.box.lx, of_ends[1] = upper.box.ux + lower.box.ux;
  of_ends[2] = upper.box.ly - lower.box.uy, of_ends[3] = upper.box.uy - lower.box.ly;
  for (int k = 0; k < 4; k++) of_ends[4 + k] = upper.bands[k] + lower.bands[(k + 2) % 4];
}
