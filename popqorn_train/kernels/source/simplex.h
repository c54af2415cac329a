// The plane that is lowest at a reference point, by column generation: see relaxations/simplex.py.
#pragma once
#include "polygon.h"

template <class V> struct Point {
  V p, q, z;  // of the surface, scaled
};

template <class V> struct Triangle {
  V p[3], q[3], z[3], weight[3];

  V area() const { return (p[1] - p[0]) * (q[2] - q[0]) - (p[2] - p[0]) * (q[1] - q[0]); }

  V divisor() const {
    V found = area();
    return abs(found) < Number<V>(1e-9) ? all<V>(1e-9) : found;
  }

  Slopes<V> slopes() const {
    V p1 = p[1] - p[0], p2 = p[2] - p[0], q1 = q[1] - q[0], q2 = q[2] - q[0], z1 = z[1] - z[0], z2 = z[2] - z[0];
    V over = divisor();
    return {(z1 * q2 - z2 * q1) / over, (p1 * z2 - p2 * z1) / over};
  }

  // Barycentric coordinates of a point.
  void shares(V at_p, V at_q, V (&found)[3]) const {
    V over = divisor(), dp = at_p - p[0], dq = at_q - q[0];
    found[1] = (dp * (q[2] - q[0]) - (p[2] - p[0]) * dq) / over;
    found[2] = ((p[1] - p[0]) * dq - dp * (q[1] - q[0])) / over;
    found[0] = 1 - found[1] - found[2];
  }
};

// Where two are equally high, the first one is taken: rounding must not choose.
template <class V, int n> INLINE V prefer_first(const V (&z)[n]) {
  V size = V{};
  ROLLED for (int i = 0; i < n; i++) size = max(size, abs(z[i]));
  return size * (64 * Of<V>::eps);
}

static const int triples_of_4[4][3] = {{0, 1, 2}, {0, 1, 3}, {0, 2, 3}, {1, 2, 3}};
static const int triples_of_8[8][3] = {{0, 2, 4}, {0, 2, 6}, {0, 4, 6}, {1, 3, 5},
                                       {1, 3, 7}, {1, 5, 7}, {2, 4, 6}, {3, 5, 7}};

// Of the triples of corners around the reference, the one whose plane is highest there.
template <class V, int n>
static Triangle<V> first_triangle(const V (&p)[n], const V (&q)[n], const V (&z)[n], V at_p, V at_q) {
  const int(*triples)[3] = n == 4 ? triples_of_4 : triples_of_8;
  V step = prefer_first(z), highest = all<V>(-infinity());
  Triangle<V> best = {};
  ROLLED for (int number = 0; number < n; number++) {  // as many triples as corners
    Triangle<V> tried;
    ROLLED for (int k = 0; k < 3; k++) {
      int corner = triples[number][k];
      tried.p[k] = p[corner], tried.q[k] = q[corner], tried.z[k] = z[corner];
    }
    tried.shares(at_p, at_q, tried.weight);
    const Number<V> near = -1e-6;
    const V* w = tried.weight;
    auto around = (w[0] >= near) & (w[1] >= near) & (w[2] >= near) & (abs(tried.area()) > Number<V>(1e-4));
    V height = w[0] * tried.z[0] + w[1] * tried.z[1] + w[2] * tried.z[2] - step * Number<V>(number);
    auto taken = (around & (height > highest)) | (number == 0 ? V{} == V{} : V{} != V{});
    highest = around & (height > highest) ? height : highest;
    ROLLED for (int k = 0; k < 3; k++) {
      best.p[k] = taken ? tried.p[k] : best.p[k], best.q[k] = taken ? tried.q[k] : best.q[k];
      best.z[k] = taken ? tried.z[k] : best.z[k];
      best.weight[k] = taken ? at_least(tried.weight[k], 0) : best.weight[k];
    }
  }
  return best;
}

// The middle of the corners, shifted, but no more than nine tenths of the way out.
template <class V, int n>
INLINE void reference(const V (&p)[n], const V (&q)[n], const Number<V> (&shift)[2], V& at_p, V& at_q) {
  V middle_p = V{}, middle_q = V{}, way = all<V>(infinity());
  ROLLED for (int i = 0; i < n; i++) middle_p += p[i], middle_q += q[i];
  middle_p /= n, middle_q /= n;
  ROLLED for (int i = 0; i < n; i++) {
    int next = (i + 1) % n;
    V out_p = q[next] - q[i], out_q = p[i] - p[next];
    V room = out_p * (p[i] - middle_p) + out_q * (q[i] - middle_q), towards = out_p * shift[0] + out_q * shift[1];
    V reach = room / at_least(towards, 1e-9);
    way = (towards > Number<V>(1e-9)) & (reach < way) ? reach : way;
  }
  way = within(Number<V>(0.9) * way, 0, 1);
  at_p = middle_p + way * shift[0], at_q = middle_q + way * shift[1];
}

// Exchange a corner for a point above the plane, so that the reference stays inside.
template <class V> static void pivot(Triangle<V>& on, const Point<V>& by, Slopes<V> slopes) {
  V share[3], theta = V{}, ratio[3];
  on.shares(by.p, by.q, share);
  ROLLED for (int k = 0; k < 3; k++)
    ratio[k] = share[k] > Number<V>(1e-7) ? on.weight[k] / at_least(share[k], 1e-7) : all<V>(infinity());
  theta = min(ratio[0], min(ratio[1], ratio[2]));
  V plane = on.z[0] + slopes.a * (by.p - on.p[0]) + slopes.b * (by.q - on.q[0]);
  auto used = by.z - plane > Of<V>::gain, left = used;
  ROLLED for (int k = 0; k < 3; k++) {
    auto out = left & (ratio[k] == theta);
    left &= ~out;  // one corner leaves
    V rest = at_least(on.weight[k] - theta * share[k], 0);
    on.weight[k] = used ? (out ? theta : rest) : on.weight[k];
    on.p[k] = out ? by.p : on.p[k], on.q[k] = out ? by.q : on.q[k], on.z[k] = out ? by.z : on.z[k];
  }
}

// How steep the product can be on the box, per half width.
template <class V> struct Limits {
  V x_low, x_high, y_low, y_high;
};

template <bool curved, class V> static Limits<V> steepness(const Box<V>& box, const Scale<V>& scale) {
  V least = min(sigmoid_slope(box.lx), sigmoid_slope(box.ux)), most = sigmoid_slope(clip(V{}, box.lx, box.ux));
  V low = second<curved>(box.ly), high = second<curved>(box.uy), flat = V{} + 1, steep = flat;
  if (curved) flat = min(1 - low * low, 1 - high * high), steep = tanh_slope(clip(V{}, box.ly, box.uy));
  return {min(low * least, low * most) * scale.half_x, max(high * least, high * most) * scale.half_x,
          sigmoid(box.lx) * flat * scale.half_y, sigmoid(box.ux) * steep * scale.half_y};
}

// `above` finds the point of the surface most above a plane with given scaled slopes.
template <class V, int n, class Oracle>
INLINE Slopes<V> lowest_plane(const V (&p)[n], const V (&q)[n], const V (&z)[n], const Limits<V>& limits,
                              const Scale<V>& scale, const Number<V> (&shift)[2], int steps, Oracle above) {
  V at_p, at_q, best = all<V>(infinity());
  reference(p, q, shift, at_p, at_q);
  Triangle<V> triangle = first_triangle(p, q, z, at_p, at_q);
  Slopes<V> found = {V{}, V{}};
  ROLLED for (int step = 0; step <= steps; step++) {
    Slopes<V> slopes = triangle.slopes();
    slopes = {clip(slopes.a, limits.x_low, limits.x_high), clip(slopes.b, limits.y_low, limits.y_high)};
    Point<V> by = above(slopes);
    V height = by.z + slopes.a * (at_p - by.p) + slopes.b * (at_q - by.q);
    auto better = height < best;
    best = better ? height : best;
    found = {better ? slopes.a : found.a, better ? slopes.b : found.b};
    if (step < steps) pivot(triangle, by, slopes);
  }
  return {found.a / scale.half_x, found.b / scale.half_y};
}
