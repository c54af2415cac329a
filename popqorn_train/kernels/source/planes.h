// The lowest of the planes above a product that a policy allows, unit by unit; the plane below is
// the mirrored one above the mirror image in y.
#pragma once
#include "simplex.h"

// What planes.py of this package passes.
template <class V> struct Choice {
  int64_t tilted, steps;
  Number<V> share, shift[2];
};

template <class V> INLINE V mix(V low, V high, Number<V> share) { return high + share * (low - high); }

// Slopes of chords, given that of sigmoid.
template <class V> INLINE Slopes<V> chords(const Curved<V>& on, V secant, Number<V> share) {
  const Box<V>& box = on.box;
  V in_y = tanh_secant(box.ly, box.uy, on.value_low, on.value_high);
  return {mix(on.value_low, on.value_high, share) * secant, mix(on.gate_high, on.gate_low, share) * in_y};
}

// The slope in x for which the plane is lowest at the reference: its height there is convex.
template <class V> struct Bisection {
  V low, high, goal;
  EdgeSearch<V> below, above;

  Bisection(const Box<V>& box, const Gates<V>& gates, V least, V most, const Choice<V>& choice)
      : below(box, gates, box.ly), above(box, gates, box.uy) {
    low = min(box.ly * least, box.ly * most), high = max(box.uy * least, box.uy * most);
    goal = box.lx + box.ux + choice.shift[0] * (box.ux - box.lx);
  }

  V middle() const { return (low + high) / 2; }

  void halve(const Choice<V>& choice) {
    V a = middle();
    auto steeper = (1 - choice.shift[1]) * below.x(a) + (1 + choice.shift[1]) * above.x(a) > goal;
    low = steeper ? a : low, high = steeper ? high : a;
  }
};

// Of a box and of its mirror image, side by side: each step waits for the one before.
template <class V>
static void bisected(const Box<V>& box, const Gates<V>& gates, const Choice<V>& choice, V& slope, V& mirrored) {
  V least = min(sigmoid_slope(box.lx), sigmoid_slope(box.ux)), most = sigmoid_slope(clip(V{}, box.lx, box.ux));
  Bisection<V> one(box, gates, least, most, choice), other(box.mirrored(), gates, least, most, choice);
  ROLLED for (int64_t step = 0; step < choice.steps; step++) one.halve(choice), other.halve(choice);
  slope = one.middle(), mirrored = other.middle();
}

template <class V> static Slopes<V> lowest_on_box(const Curved<V>& on, const Choice<V>& choice) {
  Scale<V> scale(on.box);
  V p[4], q[4], z[4];
  corners(p, q);
  ROLLED for (int i = 0; i < 4; i++) z[i] = product<true>(scale.x + scale.half_x * p[i], scale.y + scale.half_y * q[i]);
  return lowest_plane(p, q, z, steepness<true>(on.box, scale), scale, choice.shift, choice.steps, [&](Slopes<V> s) {
    High<V> best = argmax_curved<true>(on, Slopes<V>{s.a / scale.half_x, s.b / scale.half_y});
    return Point<V>{(best.x - scale.x) / scale.half_x, (best.y - scale.y) / scale.half_y, best.gate * best.value};
  });
}

template <bool curved, class V>
static Slopes<V> lowest_on_octagon(const Box<V>& box, const Bands<V>& bands, const Scale<V>& scale,
                                   const Border<V>& on, const Choice<V>& choice) {
  const V *p = on.p, *q = on.q;
  V step = prefer_first(on.z);
  auto oracle = [&](Slopes<V> s) {
    V height = on.z[0] - s.a * p[0] - s.b * q[0];
    Point<V> best = {p[0], q[0], on.z[0]};
    ROLLED for (int i = 1; i < border_points; i++) {
      V here = on.z[i] - s.a * p[i] - s.b * q[i] - step * Number<V>(i);
      auto better = here > height;
      height = max(here, height);
      best = {better ? p[i] : best.p, better ? q[i] : best.q, better ? on.z[i] : best.z};
    }
    if (!curved) return best;
    Held<V> held = inside<true>(box, bands, scale, Slopes<V>{s.a / scale.half_x, s.b / scale.half_y});
    if (!any(held.there)) return best;
    V at_p = (held.x - scale.x) / scale.half_x, at_q = (held.y - scale.y) / scale.half_y;
    V z = product<true>(held.x, held.y);
    auto better = held.there & (z - s.a * at_p - s.b * at_q > height);
    return Point<V>{better ? at_p : best.p, better ? at_q : best.q, better ? z : best.z};
  };
  return lowest_plane(on.corner_p, on.corner_q, on.corner_z, steepness<curved>(box, scale), scale, choice.shift,
                      choice.steps, oracle);
}

// The plane of these slopes that touches the product from above.
template <class V> static Plane<V> raised(const Curved<V>& on, Slopes<V> slopes) {
  return {slopes.a, slopes.b, curved_top(on, slopes)};
}

template <class V>
static Plane<V> memory_on_chord(const Box<V>& box, const Gates<V>& gates, V secant, const Choice<V>& choice) {
  return memory_plane(box, gates, mix(box.ly, box.uy, choice.share) * secant);
}

template <bool curved, class V> static Plane<V> on_chords(const Box<V>& box, const Choice<V>& choice) {
  Gates<V> gates(box);
  V secant = sigmoid_secant(box, gates);
  if (!curved) return memory_on_chord(box, gates, secant, choice);
  Curved<V> on(box, gates, tanh(box.ly), tanh(box.uy));
  return raised(on, chords(on, secant, choice.share));
}

template <bool curved, class V>
static Plane<V> on_octagon(const Box<V>& box, const Bands<V>& bands, const Border<V>& on, const Choice<V>& choice) {
  Scale<V> scale(box);
  Plane<V> plane;
  if (choice.tilted) {
    Slopes<V> slopes = lowest_on_octagon<curved>(box, bands, scale, on, choice);
    V over_box = curved ? curved_top(Curved<V>(box), slopes) : memory_top(box, Gates<V>(box), slopes);
    plane = {slopes.a, slopes.b, over_box};
  } else {
    plane = on_chords<curved>(box, choice);
  }
  plane.top = min(plane.top, octagon_top<curved>(box, bands, scale, on, Slopes<V>{plane.a, plane.b}));
  return plane;
}
