// What is asked of one vector of units. `ends` are lx, ux, ly, uy and, of octagons, sum_low, sum_high,
// diff_low, diff_high.
#pragma once
#include "octagon_gradients.h"
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

template <class V> static Both<V> above_memory(const Box<V>& box, const Choice<V>& choice) {
  Box<V> mirror = box.mirrored();
  Gates<V> gates(box);
  if (!choice.tilted) {
    V secant = sigmoid_secant(box, gates);
    return {memory_on_chord(box, gates, secant, choice), memory_on_chord(mirror, gates, secant, choice)};
  }
  V slope, mirrored;
  bisected(box, gates, choice, slope, mirrored);
  return {memory_plane(box, gates, slope), memory_plane(mirror, gates, mirrored)};
}

template <class V> static Both<V> above_curved(const Box<V>& box, const Choice<V>& choice) {
  Gates<V> gates(box);
  Curved<V> on(box, gates, tanh(box.ly), tanh(box.uy)), image = on.mirrored(gates);
  if (choice.tilted) return {raised(on, lowest_on_box(on, choice)), raised(image, lowest_on_box(image, choice))};
  V secant = sigmoid_secant(box, gates);
  return {raised(on, chords(on, secant, choice.share)), raised(image, chords(image, secant, choice.share))};
}

template <bool curved, class V>
static Both<V> above_octagon(const Box<V>& box, const Bands<V>& bands, const Choice<V>& choice) {
  Box<V> mirror = box.mirrored();
  Bands<V> mirrored_bands = {bands.diff_low, bands.diff_high, bands.sum_low, bands.sum_high};
  Border<V> on;
  set_border<curved>(on, box, bands, Scale<V>(box));
  Border<V> image = mirrored<curved>(on, mirror, Scale<V>(mirror));
  return {on_octagon<curved>(box, bands, on, choice), on_octagon<curved>(mirror, mirrored_bands, image, choice)};
}

template <class V>
static Both<V> above(const Box<V>& box, const Bands<V>& bands, int kind, const Choice<V>& choice) {
  switch (kind) {
    case 0: return above_memory(box, choice);
    case 1: return above_curved(box, choice);
    case 2: return above_octagon<false>(box, bands, choice);
    default: return above_octagon<true>(box, bands, choice);
  }
}

// x, y and intercept of the lower plane, then of the upper one.
template <class V>
static void enclose(const V (&ends)[8], bool curved, bool octagon, const Choice<V>& choice, V (&planes)[6]) {
  int kind = (octagon ? 2 : 0) + (curved ? 1 : 0);
  Box<V> box = {ends[0], ends[1], ends[2], ends[3]};
  Bands<V> bands = {ends[4], ends[5], ends[6], ends[7]};
  V nan = failure(box, bands);
  Both<V> found = above(box, bands, kind, choice);
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
  Box<V> box = {ends[0], ends[1], ends[2], ends[3]}, upper, lower;
  Worth<V> above = {worth[3], worth[4], worth[5]}, below = {-worth[0], worth[1], -worth[2]};
  Gates<V> gates(box);
  Chord<V> in_x = chord_in_x(box, gates);
  if (curved) {
    Curved<V> on(box, gates, tanh(box.ly), tanh(box.uy));
    upper = of_curved(on, in_x, share, above), lower = of_curved(on.mirrored(gates), in_x, share, below);
  } else {
    upper = of_memory(box, gates, in_x, share, above), lower = of_memory(box.mirrored(), gates, in_x, share, below);
  }
  of_ends[0] = upper.lx + lower.lx, of_ends[1] = upper.ux + lower.ux;
  of_ends[2] = upper.ly - lower.uy, of_ends[3] = upper.uy - lower.ly;
}

// The gradient of planes on octagons, found by the same choice, in all ends; NaN where the planes are.
template <class V>
static void gradient_on_octagon(const V (&ends)[8], bool curved, const Choice<V>& choice, const V (&planes)[6],
                                const V (&worth)[6], V (&of_ends)[8]) {
  Box<V> box = {ends[0], ends[1], ends[2], ends[3]};
  Bands<V> bands = {ends[4], ends[5], ends[6], ends[7]};
  if (curved) of_both<true>(box, bands, choice, planes, worth, of_ends);
  else of_both<false>(box, bands, choice, planes, worth, of_ends);
}

template <class V> static V function(int64_t which, V x) {
  return which == 0 ? sigmoid(x) : which == 1 ? tanh(x) : which == 2 ? log(x) : artanh_root(x);
}
