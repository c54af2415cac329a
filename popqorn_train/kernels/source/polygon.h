// The domain of a product, scaled to the square, and its border: see relaxations/domain.py and
// octagon.py.
#pragma once
#include "box.h"
#include "dual.h"

constexpr int pieces = 8, inner_points = 3;  // of a diagonal; sampled on a side along x or y
constexpr int diagonal_points = 4 * (pieces + 1), border_points = diagonal_points + 4 * inner_points;

template <class V> struct Bands {
  V sum_low, sum_high, diff_low, diff_high;
};

template <class V> struct Scale {
  V x, half_x, y, half_y;

  explicit Scale(const Box<V>& box) {
    const Number<V> least = 8 * Of<V>::eps;
    x = (box.lx + box.ux) / 2, y = (box.ly + box.uy) / 2;
    half_x = max(max(box.ux - x, x - box.lx), least * (1 + abs(x)));
    half_y = max(max(box.uy - y, y - box.ly), least * (1 + abs(y)));
  }
};

// What the square is scaled to: more than the box where a side has next to no width.
template <class V> INLINE Box<V> covered(const Box<V>& box, const Scale<V>& scale) {
  return {min(box.lx, scale.x - scale.half_x), max(box.ux, scale.x + scale.half_x),
          min(box.ly, scale.y - scale.half_y), max(box.uy, scale.y + scale.half_y)};
}

template <bool curved, class V> INLINE V second(V y) { return curved ? tanh(y) : y; }
template <bool curved, class V> INLINE V product(V x, V y) { return sigmoid(x) * second<curved>(y); }

// Corners in turn, anticlockwise.
template <class V> INLINE void corners(V (&p)[4], V (&q)[4]) {
  V one = V{} + 1;
  p[0] = p[1] = q[1] = q[2] = one, p[2] = p[3] = q[0] = q[3] = -one;
}

// How far a coordinate goes, see domain.py.
template <class N> INLINE N reach(const N& one, const N& other) {
  typedef Plain<N> V;
  return kept(smaller(times(one + other, 0.5), smaller(one, other) + (V{} + 1)), -infinity(), 1);
}

template <class N> static void corners(const Bands<N>& bands, N (&p)[8], N (&q)[8]) {
  N sum_low = bands.sum_low, sum_high = bands.sum_high, diff_low = bands.diff_low, diff_high = bands.diff_high;
  N p_high = reach<N>(sum_high, diff_high), p_low = -reach<N>(-sum_low, -diff_low);
  N q_high = reach<N>(sum_high, -diff_low), q_low = -reach<N>(-sum_low, diff_high);
  sum_high = smaller(sum_high, p_high + q_high), sum_low = larger(sum_low, p_low + q_low);
  diff_high = smaller(diff_high, p_high - q_low), diff_low = larger(diff_low, p_low - q_high);
  p[0] = p_high, q[0] = p_high - diff_high;
  p[1] = p_high, q[1] = sum_high - p_high;
  p[2] = sum_high - q_high, q[2] = q_high;
  p[3] = diff_low + q_high, q[3] = q_high;
  p[4] = p_low, q[4] = p_low - diff_low;
  p[5] = p_low, q[5] = sum_low - p_low;
  p[6] = sum_low - q_low, q[6] = q_low;
  p[7] = diff_high + q_low, q[7] = q_low;
  ROLLED for (int i = 0; i < 8; i++) p[i] = kept(p[i], -1, 1), q[i] = kept(q[i], -1, 1);
}

// Corners of an octagon and points of its border: first 9 of each diagonal, from corner to corner,
// place by place, then 3 of each other side; those of the square too.
template <class V> struct Border {
  V corner_p[8], corner_q[8], corner_x[8], corner_y[8], corner_z[8];
  V gate[8], value[8];  // both factors at corners
  V p[border_points], q[border_points], x[border_points], y[border_points], z[border_points];
  V bend[4];  // what a piece of each diagonal may rise above its ends
  V room;     // what rounding may take from f, and of the place of a corner
};

template <bool curved, class V> static void set_bend(Border<V>& on, const Box<V>& box) {
  V rise = sigmoid_slope(clip(V{}, box.lx, box.ux)), gate = sigmoid(box.ux);
  V slope = curved ? tanh_slope(clip(V{}, box.ly, box.uy)) : V{} + 1, mixed = rise * slope;
  V height = largest(second<curved>(box.ly), second<curved>(box.uy)), along_y = gate * Number<V>(curved ? 0.7699 : 0);
  V far_x = largest(box.lx, box.ux), far_y = largest(box.ly, box.uy);
  gate = counted(gate);
  on.room = slack<V>(gate * height, rise * height * far_x, slope * gate * far_y);
  ROLLED for (int side = 0; side < 4; side++) {
    int start = 2 * side + 1, stop = (start + 1) % 8;
    V dx = (on.corner_x[stop] - on.corner_x[start]) / pieces;
    V dy = (on.corner_y[stop] - on.corner_y[start]) / pieces;
    V against = at_least(-dx * dy, 0);
    on.bend[side] = (Number<V>(0.0963) * height * dx * dx + 2 * mixed * against + along_y * dy * dy) / 8;
  }
}

// Where a point lies among the others: `side` from one corner to the next, `place` from 0 on.
INLINE int point_of(int side, int place) {
  return side % 2 ? 4 * place + side / 2 : diagonal_points + 4 * (place - 1) + side / 2;
}

template <bool curved, class V>
static void set_border(Border<V>& on, const Box<V>& box, const Bands<V>& bands, const Scale<V>& scale) {
  corners(bands, on.corner_p, on.corner_q);
  V *gate = on.gate, *value = on.value;
  ROLLED for (int i = 0; i < 8; i++) {
    V x = on.corner_x[i] = scale.x + scale.half_x * on.corner_p[i];
    V y = on.corner_y[i] = scale.y + scale.half_y * on.corner_q[i];
    gate[i] = sigmoid(x), value[i] = second<curved>(y), on.corner_z[i] = gate[i] * value[i];
  }
  V per_x = 1 / scale.half_x, per_y = 1 / scale.half_y;
  ROLLED for (int side = 0; side < 8; side++) {
    int stop = (side + 1) % 8, last = side % 2 ? pieces : inner_points + 1;
    ROLLED for (int place = side % 2 ? 0 : 1; place < last + side % 2; place++) {
      int at = point_of(side, place);
      Number<V> share = place / Number<V>(last);
      V x = on.x[at] = between(on.corner_x[side], on.corner_x[stop], share);
      V y = on.y[at] = between(on.corner_y[side], on.corner_y[stop], share);
      on.p[at] = (x - scale.x) * per_x, on.q[at] = (y - scale.y) * per_y;
      // On every fourth side x stays, and two further on y does.
      V first = side % 4 ? sigmoid(x) : gate[side], other = side % 4 == 2 ? value[side] : second<curved>(y);
      on.z[at] = place % last ? first * other : on.corner_z[place ? stop : side];
    }
  }
  set_bend<curved>(on, covered(box, scale));
}

// The same of the mirror image in y of a box, of which the border is known.
template <bool curved, class V> static Border<V> mirrored(const Border<V>& on, const Box<V>& box, const Scale<V>& scale) {
  Border<V> image;
  ROLLED for (int i = 0; i < 8; i++) {
    int of = (9 - i) % 8;
    image.corner_p[i] = on.corner_p[of], image.corner_q[i] = -on.corner_q[of];
    image.corner_x[i] = on.corner_x[of], image.corner_y[i] = -on.corner_y[of], image.corner_z[i] = -on.corner_z[of];
    image.gate[i] = on.gate[of], image.value[i] = -on.value[of];
  }
  ROLLED for (int side = 0; side < 8; side++) {
    int last = side % 2 ? pieces : inner_points + 1;
    ROLLED for (int place = side % 2 ? 0 : 1; place < last + side % 2; place++) {
      int i = point_of(side, place), of = point_of((8 - side) % 8, last - place);
      image.p[i] = on.p[of], image.q[i] = -on.q[of];
      image.x[i] = on.x[of], image.y[i] = -on.y[of], image.z[i] = -on.z[of];
    }
  }
  set_bend<curved>(image, covered(box, scale));
  return image;
}

// The local maximum inside, and in which lanes the octagon may hold it; without doubt in a search.
template <class V> struct Held {
  V x, y, miss;
  Wholes<V> there;
};

template <bool search, class V>
static Held<V> inside(const Box<V>& box, const Bands<V>& bands, const Scale<V>& scale, Slopes<V> slopes) {
  const Number<V> near = 1e-3;
  Inner<V> found = interior(slopes, V{} == V{});
  Held<V> held = {clip(found.x, box.lx, box.ux), clip(found.y, box.ly, box.uy), V{}, found.there};
  if (!any(held.there)) return held;
  V p = (found.x - scale.x) / scale.half_x, q = (found.y - scale.y) / scale.half_y, far_p = p, far_q = q;
  if (!search) {
    Doubt<V> of = doubt(found);
    held.miss = of.miss;
    far_p = (x_at(of.far_w) - scale.x) / scale.half_x, far_q = (y_at(of.far_w, found.b) - scale.y) / scale.half_y;
  }
  held.there &= (p >= -1 - near) & (far_p <= 1 + near) & (q >= -1 - near) & (far_q <= 1 + near);
  held.there &= (p + q >= bands.sum_low - near) & (far_p + far_q <= bands.sum_high + near);
  held.there &= (p - far_q >= bands.diff_low - near) & (far_p - q <= bands.diff_high + near);
  return held;
}

// Where the gap is highest: `share` of the way along the side after a corner. A coordinate moves with the
// corners of the side (1) or is free (0).
template <class V> struct Spot {
  V height, x, y, side, share, moves_x, moves_y;
};

template <class V> INLINE Spot<V> higher(const Spot<V>& one, const Spot<V>& other) {
  auto mask = other.height > one.height;
  return {max(one.height, other.height),  mask ? other.x : one.x,
          mask ? other.y : one.y,         mask ? other.side : one.side,
          mask ? other.share : one.share, mask ? other.moves_x : one.moves_x,
          mask ? other.moves_y : one.moves_y};
}

// Of a side along x or y.
template <bool curved, class V> INLINE Spot<V> on_side(const Border<V>& on, Slopes<V> slopes, int side) {
  V x = on.corner_x[side], y = on.corner_y[side], to_x = on.corner_x[side + 1], to_y = on.corner_y[side + 1];
  V gate = on.gate[side], value = on.value[side], to_gate = on.gate[side + 1], to_value = on.value[side + 1];
  V from = side % 4 ? x : y, to = side % 4 ? to_x : to_y, one = V{} + 1;
  if (side % 4 == 0) {  // x stays
    V low = min(y, to_y), high = max(y, to_y), at_low = min(value, to_value), at_high = max(value, to_value);
    auto rises = gate > slopes.b;
    Peak<V> best_y = {rises ? high : low, rises ? at_high : at_low};
    if (curved) best_y = argmax_tanh(gate, slopes.b, low, high, at_low, at_high);
    y = best_y.at, value = best_y.value;
  } else {
    V at_low = min(gate, to_gate), at_high = max(gate, to_gate);
    Peak<V> best_x = argmax_sigmoid(value, slopes.a, min(x, to_x), max(x, to_x), at_low, at_high);
    x = best_x.at, gate = best_x.value;
  }
  V at = side % 4 ? x : y, starts = at == from ? one : V{}, moves = at == to ? one : starts;
  return {gap(gate * value, slopes, x, y), x, y, all<V>(side), 1 - starts, side % 4 ? moves : one, side % 4 ? one : moves};
}

// Of the diagonals, with what a piece may rise above its higher end.
template <class V> INLINE Spot<V> on_diagonals(const Border<V>& on, Slopes<V> slopes) {
  V last[4], steep[4], one = V{} + 1;
  Spot<V> best = {all<V>(-infinity()), V{}, V{}, V{}, V{}, V{}, V{}};
  ROLLED for (int side = 0; side < 4; side++) steep[side] = 1 / at_least(4 * on.bend[side], Of<V>::tiny);
  ROLLED for (int i = 0; i < diagonal_points; i++) {
    int side = i % 4;
    V here = gap(on.z[i], slopes, on.x[i], on.y[i]);
    if (i >= 4) {
      V share = at_least(1 - abs(here - last[side]) * steep[side], 0);
      V height = max(here, last[side]) + on.bend[side] * share * share, place = all<V>(i / 4);
      auto ahead = here > last[side];
      V x = ahead ? on.x[i] : on.x[i - 4], y = ahead ? on.y[i] : on.y[i - 4];
      best = higher(best, Spot<V>{height, x, y, all<V>(2 * side + 1), (ahead ? place : place - 1) / pieces, one, one});
    }
    last[side] = here;
  }
  return best;
}

// The greatest sigmoid(x) g(y) - a x - b y over an octagon, as a bound (see octagon.py), and where it is.
template <bool curved, class V>
INLINE Spot<V> octagon_spot(const Box<V>& box, const Bands<V>& bands, const Scale<V>& scale, const Border<V>& on,
                            Slopes<V> slopes) {
  Box<V> wider = covered(box, scale);
  Spot<V> best = on_diagonals(on, slopes);
  ROLLED for (int side = 0; side < 8; side += 2) best = higher(best, on_side<curved>(on, slopes, side));
  if (curved) {
    Held<V> held = inside<false>(wider, bands, scale, slopes);
    V height = gap(product<true>(held.x, held.y), slopes, held.x, held.y) + held.miss;
    Spot<V> inner = {held.there ? height : best.height, held.x, held.y, V{}, V{}, V{}, V{}};
    best = higher(best, inner);
  }
  V in_x = slopes.a * largest(wider.lx, wider.ux), in_y = slopes.b * largest(wider.ly, wider.uy);
  best.height = best.height + 2 * (on.room + slack(V{}, in_x, in_y));
  return best;
}

template <bool curved, class V>
static V octagon_top(const Box<V>& box, const Bands<V>& bands, const Scale<V>& scale, const Border<V>& on,
                     Slopes<V> slopes) {
  return octagon_spot<curved>(box, bands, scale, on, slopes).height;
}
