// What is asked of one vector of units. `ends` are lx, ux, ly, uy and, of octagons, sum_low, sum_high,
// diff_low, diff_high.
#pragma once
#include "gradients.h"
#include "strips.h"

// 0 where all ends are numbers that can be reckoned with, else NaN.
template <class V> static V failure(const Box<V>& box, const Bands<V>& bands) {
  const Number<V> most = Of<V>::largest;
  auto fine = (abs(box.lx) <= most) & (abs(box.ux) <= most) & (abs(box.ly) <= most) & (abs(box.uy) <= most);
  fine &= (abs(bands.sum_low) <= 4) & (abs(bands.sum_high) <= 4);
  fine &= (abs(bands.diff_low) <= 4) & (abs(bands.diff_high) <= 4);
  return fine ? V{} : all<V>(not_a_number());
}

// The upper planes of a box and of its mirror image in y.
template <class V> struct Both {
  Plane<V> upper, mirror;
};

template <class V> static Both<V> above_memory(const Box<V>& box, const Box<V>& mirror, const Choice<V>& choice) {
  if (!choice.tilted) return {memory_on_box(box, choice), memory_on_box(mirror, choice)};
  V slope, mirrored;
  bisected(box, mirror, choice, slope, mirrored);
  return {memory_plane(box, slope), memory_plane(mirror, mirrored)};
}

template <bool curved, class V>
static Both<V> above_octagon(const Box<V>& box, const Box<V>& mirror, const Bands<V>& bands, const Choice<V>& choice) {
  Bands<V> mirrored_bands = {bands.diff_low, bands.diff_high, bands.sum_low, bands.sum_high};
  Border<V> on;
  set_border<curved>(on, box, bands, Scale<V>(box));
  Border<V> image = mirrored<curved>(on, mirror, Scale<V>(mirror));
  return {on_octagon<curved>(box, bands, on, choice), on_octagon<curved>(mirror, mirrored_bands, image, choice)};
}

template <class V>
static Both<V> above(const Box<V>& box, const Box<V>& mirror, const Bands<V>& bands, int kind, const Choice<V>& choice) {
  switch (kind) {
    case 0: return above_memory(box, mirror, choice);
    case 1: return {curved_on_box(box, choice), curved_on_box(mirror, choice)};
    case 2: return above_octagon<false>(box, mirror, bands, choice);
    default: return above_octagon<true>(box, mirror, bands, choice);
  }
}

// x, y and intercept of the lower plane, then of the upper one.
template <class V>
static void enclose(const V (&ends)[8], bool curved, bool octagon, const Choice<V>& choice, V (&planes)[6]) {
  int kind = (octagon ? 2 : 0) + (curved ? 1 : 0);
  Box<V> box = {ends[0], ends[1], ends[2], ends[3]}, mirror = {box.lx, box.ux, -box.uy, -box.ly};
  Bands<V> bands = {ends[4], ends[5], ends[6], ends[7]};
  V nan = failure(box, bands);
  Both<V> found = above(box, mirror, bands, kind, choice);
  planes[0] = -found.mirror.a + nan, planes[1] = found.mirror.b + nan, planes[2] = -found.mirror.top + nan;
  planes[3] = found.upper.a + nan, planes[4] = found.upper.b + nan, planes[5] = found.upper.top + nan;
}

// The slopes in x and y, the middle and the half.
template <class V> static void narrow(const V (&ends)[8], bool curved, V (&parts)[4]) {
  Box<V> box = {ends[0], ends[1], ends[2], ends[3]};
  Bands<V> bands = {ends[4], ends[5], ends[6], ends[7]};
  Strip<V> strip_of = curved ? strip<true>(box, bands) : strip<false>(box, bands);
  V found[4] = {strip_of.a, strip_of.b, strip_of.middle, strip_of.half}, nan = failure(box, bands);
  for (int k = 0; k < 4; k++) parts[k] = found[k] + nan;
}

// The gradient of closed-form planes on boxes, whose numbers are worth something, in lx, ux, ly and uy.
template <class V>
static void gradient(const V (&ends)[4], bool curved, Number<V> share, const V (&worth)[6], V (&of_ends)[4]) {
  auto of = curved ? of_curved<V> : of_memory<V>;
  Box<V> box = {ends[0], ends[1], ends[2], ends[3]}, mirror = {box.lx, box.ux, -box.uy, -box.ly};
  Box<V> upper = of(box, share, {worth[3], worth[4], worth[5]});
  Box<V> lower = of(mirror, share, {-worth[0], worth[1], -worth[2]});
  of_ends[0] = upper.lx + lower.lx, of_ends[1] = upper.ux + lower.ux;
  of_ends[2] = upper.ly - lower.uy, of_ends[3] = upper.uy - lower.ly;
}

template <class V> static V function(int64_t which, V x) {
  return which == 0 ? sigmoid(x) : which == 1 ? tanh(x) : log(x);
}
