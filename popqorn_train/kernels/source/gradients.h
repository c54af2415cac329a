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

// A chord of tanh: the slope that tanh_secant has, and its gradient.
template <class V> struct Chord {
  V at_low, at_high, width, over, slope;

  Chord(V low, V high, V at_low, V at_high) : at_low(at_low), at_high(at_high), width(at_least(high - low, 1e-30)) {
    over = tanh(width) / width, slope = over * (1 - at_low * at_high);
  }

  void gradient(V worth, V& of_low, V& of_high) const {
    V series = (Number<V>(8.0 / 15) * width * width - Number<V>(2.0 / 3)) * width;
    V quotient = (1 - over * over * width * width - over) / width;
    V bend = (width > Number<V>(1e-2) ? quotient : series) * (1 - at_low * at_high);
    of_low += worth * (-bend - over * at_high * (1 - at_low * at_low));
    of_high += worth * (bend - over * at_low * (1 - at_high * at_high));
  }
};

// That of sigmoid, which is four times as steep and half as wide.
template <class V> INLINE Chord<V> chord_in_x(const Box<V>& box, const Gates<V>& gates) {
  return Chord<V>(box.lx / 2, box.ux / 2, gates.tanh_low(), gates.tanh_high());
}

// Of the slope in x of a closed form, given the values at the ends in y.
template <bool curved, class V>
INLINE void of_slope_in_x(const Chord<V>& chord, V low, V high, Number<V> share, V worth, Box<V>& of) {
  V of_value = worth * chord.slope / 4;
  of.ly += of_value * share * (curved ? 1 - low * low : V{} + 1);
  of.uy += of_value * (1 - share) * (curved ? 1 - high * high : V{} + 1);
  chord.gradient(worth * mix(low, high, share) / 8, of.lx, of.ux);
}

template <class V>
static Box<V> of_curved(const Curved<V>& on, const Chord<V>& in_x, Number<V> share, Worth<V> worth) {
  const Box<V>& box = on.box;
  Chord<V> in_y(box.ly, box.uy, on.value_low, on.value_high);
  Slopes<V> slopes = chords(on, in_x.slope / 4, share);
  High<V> best = argmax_curved<false>(on, slopes);
  V gate = best.gate, value = best.value;
  Box<V> of = {V{}, V{}, V{}, V{}};
  on_ends(worth.top * (gate * (1 - gate) * value - slopes.a), best.x, box.lx, box.ux, of.lx, of.ux);
  on_ends(worth.top * (gate * (1 - value * value) - slopes.b), best.y, box.ly, box.uy, of.ly, of.uy);
  of_slope_in_x<true>(in_x, on.value_low, on.value_high, share, worth.a - worth.top * best.x, of);
  V of_b = worth.b - worth.top * best.y;
  of.ux += of_b * in_y.slope * share * on.gate_high * (1 - on.gate_high);
  of.lx += of_b * in_y.slope * (1 - share) * on.gate_low * (1 - on.gate_low);
  in_y.gradient(of_b * mix(on.gate_high, on.gate_low, share), of.ly, of.uy);
  return of;
}

// One edge of sigmoid(x) y, whose height and gate are worth something.
template <class V>
INLINE void of_edge(const Box<V>& box, const Edge<V>& edge, V a, V y, V height, V gate, V& of_a, V& of_y, Box<V>& of) {
  of_y += height * edge.gate, of_a -= height * edge.x;
  V in_x = (height * y + gate) * edge.gate * (1 - edge.gate) - height * a;
  on_ends(in_x, edge.x, box.lx, box.ux, of.lx, of.ux);
}

template <class V>
static Box<V> of_memory(const Box<V>& box, const Gates<V>& gates, const Chord<V>& in_x, Number<V> share,
                        Worth<V> worth) {
  V a = mix(box.ly, box.uy, share) * (in_x.slope / 4), closed = gates.low, opened = gates.high;
  Edge<V> low = memory_edge(a, box, gates, box.ly), high = memory_edge(a, box, gates, box.uy);
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
  of_slope_in_x<false>(in_x, box.ly, box.uy, share, of_a, of);
  return of;
}
