// Gradients of closed-form planes on boxes, as torch has them for the same planes: the point where
// the gap is greatest is held, but follows an end on which it lies (relaxations/extremum.py).
#pragma once
#include "planes.h"

// What a plane's slopes and intercept are worth.
template <class V> struct Worth {
  V a, b, top;
};

template <class V> INLINE void on_ends(V worth, V x, V low, V high, V& of_low, V& of_high) {
  of_low += x > low ? V{} : worth;
  of_high += (x > low) & !(x < high) ? worth : V{};
}

// Of tanh_secant, given tanh at both ends.
template <class V>
INLINE void of_secant(V low, V high, V at_low, V at_high, V worth, V& of_low, V& of_high) {
  V width = at_least(high - low, 1e-30), over = tanh(width) / width;
  V series = (Number<V>(8.0 / 15) * width * width - Number<V>(2.0 / 3)) * width;
  V quotient = (1 - over * over * width * width - over) / width;
  V bend = (width > Number<V>(1e-2) ? quotient : series) * (1 - at_low * at_high);
  of_low += worth * (-bend - over * at_high * (1 - at_low * at_low));
  of_high += worth * (bend - over * at_low * (1 - at_high * at_high));
}

// Of the slope in x of a closed form.
template <bool curved, class V> INLINE void of_slope_in_x(const Box<V>& box, Number<V> share, V worth, Box<V>& of) {
  V low = second<curved>(box.ly), high = second<curved>(box.uy);
  V l = box.lx / 2, h = box.ux / 2, at_l = tanh(l), at_h = tanh(h);
  V of_value = worth * tanh_secant(l, h, at_l, at_h) / 4;
  of.ly += of_value * share * (curved ? 1 - low * low : V{} + 1);
  of.uy += of_value * (1 - share) * (curved ? 1 - high * high : V{} + 1);
  of_secant(l, h, at_l, at_h, worth * mix(low, high, share) / 8, of.lx, of.ux);
}

template <class V> static Box<V> of_curved(const Box<V>& box, Number<V> share, Worth<V> worth) {
  Curved<V> on(box);
  Slopes<V> slopes = chords(on, share);
  High<V> best = argmax_curved<false>(on, slopes);
  V gate = sigmoid(best.x), value = tanh(best.y);
  Box<V> of = {V{}, V{}, V{}, V{}};
  V in_x = worth.top * (gate * (1 - gate) * value - slopes.a), in_y = worth.top * (gate * (1 - value * value) - slopes.b);
  on_ends(in_x, best.x, box.lx, box.ux, of.lx, of.ux);
  on_ends(in_y, best.y, box.ly, box.uy, of.ly, of.uy);
  of_slope_in_x<true>(box, share, worth.a - worth.top * best.x, of);
  V of_b = worth.b - worth.top * best.y, chord = tanh_secant(box.ly, box.uy, on.value_low, on.value_high);
  of.ux += of_b * chord * share * on.gate_high * (1 - on.gate_high);
  of.lx += of_b * chord * (1 - share) * on.gate_low * (1 - on.gate_low);
  V gates = mix(on.gate_high, on.gate_low, share);
  of_secant(box.ly, box.uy, on.value_low, on.value_high, of_b * gates, of.ly, of.uy);
  return of;
}

// One edge of sigmoid(x) y, whose height and gate are worth something.
template <class V>
INLINE void of_edge(const Box<V>& box, const Edge<V>& edge, V a, V y, V height, V gate, V& of_a, V& of_y, Box<V>& of) {
  of_y += height * edge.gate, of_a -= height * edge.x;
  V in_x = (height * y + gate) * edge.gate * (1 - edge.gate) - height * a;
  on_ends(in_x, edge.x, box.lx, box.ux, of.lx, of.ux);
}

template <class V> static Box<V> of_memory(const Box<V>& box, Number<V> share, Worth<V> worth) {
  V a = slope_in_x<false>(box, share), closed = sigmoid(box.lx), opened = sigmoid(box.ux);
  Edge<V> low = memory_edge(a, box.lx, box.ux, box.ly), high = memory_edge(a, box.lx, box.ux, box.uy);
  Between<V> in_y = between_edges(box, low, high);
  V b = clip(in_y.slope, closed, opened);
  V of_high = high.height - b * box.uy > low.height - b * box.ly ? worth.top : V{}, of_low = worth.top - of_high;
  V of_b = worth.b - of_low * box.ly - of_high * box.uy;
  // b follows the gate on whose range it ends.
  V of_rest = in_y.slope > closed ? of_b : V{}, of_free = opened > in_y.slope ? of_rest : V{};
  V rise = in_y.narrow ? V{} : of_free / in_y.width, of_gates = in_y.narrow ? of_free / 2 : V{};
  Box<V> of = {(of_b - of_rest) * closed * (1 - closed), (of_rest - of_free) * opened * (1 - opened),
               rise * in_y.slope - of_low * b, -rise * in_y.slope - of_high * b};
  V of_a = worth.a;
  of_edge(box, low, a, box.ly, of_low - rise, of_gates, of_a, of.ly, of);
  of_edge(box, high, a, box.uy, of_high + rise, of_gates, of_a, of.uy, of);
  of_slope_in_x<false>(box, share, of_a, of);
  return of;
}
