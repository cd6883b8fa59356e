// Passes over channels-last maps, for `native.py`. A map is rows of channels: element (r, c) is at x[r * stride + c].
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

enum Act { NONE, RELU, GELU };
constexpr long BLOCK = 64;  // rows summed before the sum is widened to double

template <class T> struct Rows {
  T* data;
  long stride;
  T* operator[](long r) const { return data + r * stride; }
};

// exp(x) for x <= 0 in a form that compilers vectorise; relative error 2e-7.
inline float exp_negative(float x) {
  float t = std::max(x * 1.44269504f, -126.0f), n = std::nearbyint(t), f = t - n;
  float p = 0.00967872f + f * (0.00133908f + f * 0.000154035f);
  p = 1.0f + f * (0.693147182f + f * (0.240226462f + f * (0.0555028245f + f * p)));
  int32_t bits = (int32_t(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return p * scale;
}

// The normal distribution's cumulative at z, and e = exp(-z * z / 2).
inline float cumulative(float z, float& e) {  // Abramowitz and Stegun, 7.1.26
  e = exp_negative(-0.5f * z * z);
  float t = 1.0f / (1.0f + 0.231641888f * std::fabs(z));
  float p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  return z > 0 ? 1.0f - 0.5f * e * p : 0.5f * e * p;
}
inline double cumulative(double z, double& e) {
  e = std::exp(-0.5 * z * z);
  return 0.5 * std::erfc(-z * 0.70710678118654752);
}

template <int act, class T> inline T value(T z) {
  T e;
  return act == GELU ? z * cumulative(z, e) : act == RELU ? (z > 0 ? z : T(0)) : z;
}
template <int act, class T> inline T slope(T z) {
  if (act != GELU) return act == RELU ? T(z > 0) : T(1);
  T e, p = cumulative(z, e);
  return p + z * e * T(0.3989422804014327);
}

// work(group, chunk, first row, last row) on all threads; each group's rows are cut into `chunks`.
template <class F> void parallel(long groups, long rows, long chunks, int threads, F work) {
#pragma omp parallel for num_threads(threads) collapse(2)
  for (long g = 0; g < groups; g++)
    for (long k = 0; k < chunks; k++)
      work(g, k, g * rows + rows * k / chunks, g * rows + rows * (k + 1) / chunks);
}

// For each group `width` sums over its rows: add(group, r, end, sums) adds those of a few rows, and returns the next.
template <class T, class F>
std::vector<double> sum_rows(long groups, long rows, long width, int threads, F add) {
  long chunks = (threads + groups - 1) / groups;
  std::vector<double> parts(groups * chunks * width);
  double* all = parts.data();
  parallel(groups, rows, chunks, threads, [=](long g, long k, long r, long end) {
    double* part = all + (g * chunks + k) * width;
    std::vector<T> block(width);
    while (r < end) {
      std::fill(block.begin(), block.end(), T(0));
      for (long stop = std::min(end, r + BLOCK); r < stop;) r = add(g, r, stop, block.data());
      for (long c = 0; c < width; c++) part[c] += block[c];
    }
  });
  for (long g = 0; g < groups; g++)
    for (long k = 0; k < chunks; k++)
      for (long c = 0; c < width; c++) {
        double value = parts[(g * chunks + k) * width + c];
        if (k) parts[g * chunks * width + c] += value;
        else parts[g * chunks * width + c] = value;
      }
  for (long g = 1; g < groups; g++) std::copy_n(&parts[g * chunks * width], width, &parts[g * width]);
  return parts;
}

// Mean and biased variance of s * x for each group and channel.
template <class T>
void moments(Rows<const T> x, const T* s, long groups, long rows, long C, int threads, T* mean, T* var) {
  std::vector<T> origin(groups * C);  // the first row, so that no digits cancel
  for (long g = 0; g < groups; g++)
    for (long c = 0; c < C; c++) origin[g * C + c] = x[g * rows][c] * (s ? s[g * rows] : T(1));
  const T* first = origin.data();
  auto sums = sum_rows<T>(groups, rows, 2 * C, threads, [=](long g, long r, long end, T* a) {
    const T *o = first + g * C, *p[4];
    T *b = a + C, f[4];
    int n = end - r < 4 ? 1 : 4;
    for (int i = 0; i < 4; i++) p[i] = x[r + i % n], f[i] = s ? s[r + i % n] : T(1);
    const T *p0 = p[0], *p1 = p[1], *p2 = p[2], *p3 = p[3];
    T f0 = f[0], f1 = f[1], f2 = f[2], f3 = f[3], w = n == 1 ? T(0.25) : T(1);
#pragma omp simd
    for (long c = 0; c < C; c++) {
      T d0 = p0[c] * f0 - o[c], d1 = p1[c] * f1 - o[c], d2 = p2[c] * f2 - o[c], d3 = p3[c] * f3 - o[c];
      a[c] += w * ((d0 + d1) + (d2 + d3));
      b[c] += w * ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3));
    }
    return r + n;
  });
  for (long g = 0; g < groups; g++)
    for (long c = 0; c < C; c++) {
      double m = sums[2 * g * C + c] / rows;
      mean[g * C + c] = T(m + first[g * C + c]);
      var[g * C + c] = T(std::max(0.0, sums[(2 * g + 1) * C + c] / rows - m * m));
    }
}

// y = act(s * x * A + B), with A and B for each group and channel.
template <int act, class T>
void affine(Rows<const T> x, const T* s, const T* A, const T* B, long groups, long rows, long C, int threads, Rows<T> y) {
  parallel(groups, rows, (threads + groups - 1) / groups, threads, [=](long g, long, long r, long end) {
    const T *a = A + g * C, *b = B + g * C;
    for (; r < end; r++) {
      const T *p = x[r], f = s ? s[r] : T(1);
      T* out = y[r];
#pragma omp simd
      for (long c = 0; c < C; c++) out[c] = value<act>(p[c] * f * a[c] + b[c]);
    }
  });
}

// Sums of h and of h * (s * x - m), with h = g * act'(s * x * A + B), which is written if there is an activation.
template <int act, class T>
std::vector<double> gradient_sums(Rows<const T> g, Rows<const T> x, const T* s, const T* A, const T* B, const T* m,
                                  long groups, long rows, long C, int threads, Rows<T> h) {
  return sum_rows<T>(groups, rows, 2 * C, threads, [=](long n, long r, long, T* sum) {
    const T *p = x[r], *q = g[r], *a = A + n * C, *b = B + n * C, *o = m + n * C, f = s ? s[r] : T(1);
    T *out = h[r], *sum2 = sum + C;
#pragma omp simd
    for (long c = 0; c < C; c++) {
      T u = p[c] * f, d = q[c] * slope<act>(u * a[c] + b[c]);
      if (act != NONE) out[c] = d;
      sum[c] += d;
      sum2[c] += d * (u - o[c]);
    }
    return r + 1;
  });
}

// dx = h * A + x * D + E
template <class T>
void backward(Rows<const T> h, Rows<const T> x, const T* A, const T* D, const T* E, long groups, long rows, long C,
              int threads, Rows<T> dx) {
  parallel(groups, rows, (threads + groups - 1) / groups, threads, [=](long g, long, long r, long end) {
    const T *a = A + g * C, *d = D + g * C, *e = E + g * C;
    for (; r < end; r++) {
      const T *p = x[r], *q = h[r];
      T* out = dx[r];
#pragma omp simd
      for (long c = 0; c < C; c++) out[c] = q[c] * a[c] + p[c] * d[c] + e[c];
    }
  });
}

template <class T> inline T dot(const T* p, const T* w, long C) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (long c = 0; c < C; c++) sum += p[c] * w[c];
  return sum;
}

template <class T> inline T clamp(T z) { return std::min(std::max(z, T(0)), T(1)); }

// As `backward`, with u = s * x in place of x and s = hardsigmoid(w . x): dx and the gradient of w.
template <class T>
std::vector<double> gate_backward(Rows<const T> h, Rows<const T> x, const T* s, const T* w, const T* A, const T* D,
                                  const T* E, long rows, long C, int threads, Rows<T> dx) {
  return sum_rows<T>(1, rows, C, threads, [=](long, long r, long, T* dw) {
    const T *p = x[r], *q = h[r], f = s[r];
    T* out = dx[r];
#pragma omp simd
    for (long c = 0; c < C; c++) out[c] = q[c] * A[c] + p[c] * f * D[c] + E[c];
    T z = f > 0 && f < 1 ? dot<T>(out, p, C) / 6 : T(0);
#pragma omp simd
    for (long c = 0; c < C; c++) {
      out[c] = out[c] * f + z * w[c];
      dw[c] += z * p[c];
    }
    return r + 1;
  });
}

}  // namespace

#define BY_ACT(f, ...) (act == GELU ? f<GELU>(__VA_ARGS__) : act == RELU ? f<RELU>(__VA_ARGS__) : f<NONE>(__VA_ARGS__))

template <class T> struct Functions {
  // Batch norm of s * x and activation; coefficients: mean, 1 / std, scale, shift.
  static void norm(int act, int training, double momentum, double eps, const T* x, long ldx, const T* s, const T* weight,
                   const T* bias, T* running_mean, T* running_var, long rows, long C, int threads, T* coefficients, T* y,
                   long ldy) {
    T *mean = coefficients, *rstd = mean + C, *A = rstd + C, *B = A + C;
    if (training) ::moments<T>({x, ldx}, s, 1, rows, C, threads, mean, rstd);
    for (long c = 0; c < C; c++) {
      if (!training) mean[c] = running_mean[c], rstd[c] = running_var[c];
      if (training) {
        running_mean[c] += T(momentum) * (mean[c] - running_mean[c]);
        running_var[c] += T(momentum) * (rstd[c] * rows / std::max(rows - 1, 1L) - running_var[c]);
      }
      rstd[c] = T(1 / std::sqrt(rstd[c] + eps));
      A[c] = rstd[c] * weight[c];
      B[c] = bias[c] - mean[c] * A[c];
    }
    BY_ACT(::affine, Rows<const T>{x, ldx}, s, A, B, 1, rows, C, threads, Rows<T>{y, ldy});
  }

  // Backward of `norm`; gradients: of the weight, of the bias, and of w if s is the gate of x.
  static void norm_backward(int act, int training, const T* g, long ldg, const T* x, long ldx, const T* s, const T* w,
                            const T* coefficients, long rows, long C, int threads, T* gradients, T* dx, long ldd) {
    const T *mean = coefficients, *rstd = mean + C, *A = rstd + C, *B = A + C;
    Rows<const T> in{x, ldx}, h{g, ldg};
    Rows<T> out{dx, ldd};
    auto sums = BY_ACT(gradient_sums, h, in, s, A, B, mean, 1, rows, C, threads, out);
    if (act != NONE) h = {dx, ldd};
    std::vector<T> D(2 * C);
    T* E = D.data() + C;
    for (long c = 0; c < C; c++) {
      gradients[c] = T(sums[C + c] * rstd[c]);
      gradients[C + c] = T(sums[c]);
      D[c] = training ? -A[c] * rstd[c] * gradients[c] / rows : T(0);
      E[c] = training ? -A[c] * gradients[C + c] / rows - D[c] * mean[c] : T(0);
    }
    if (!s) return ::backward<T>(h, in, A, D.data(), E, 1, rows, C, threads, out);
    auto dw = gate_backward(h, in, s, w, A, D.data(), E, rows, C, threads, out);
    std::copy_n(dw.begin(), C, gradients + 2 * C);
  }

  // Moments of each group, see above; groups are images.
  static void moments(const T* x, long ldx, long groups, long rows, long C, int threads, T* mean, T* var) {
    ::moments<T>({x, ldx}, nullptr, groups, rows, C, threads, mean, var);
  }
  static void affine(const T* x, long ldx, const T* A, const T* B, long groups, long rows, long C, int threads, T* y,
                     long ldy) {
    ::affine<NONE, T>({x, ldx}, nullptr, A, B, groups, rows, C, threads, {y, ldy});
  }
  static void backward(const T* h, long ldh, const T* x, long ldx, const T* A, const T* D, const T* E, long groups,
                       long rows, long C, int threads, T* dx, long ldd) {
    ::backward<T>({h, ldh}, {x, ldx}, A, D, E, groups, rows, C, threads, {dx, ldd});
  }
  // Sums of g and of g * (x - mean) for each group.
  static void sums(const T* g, long ldg, const T* x, long ldx, const T* A, const T* B, const T* mean, long groups,
                   long rows, long C, int threads, T* S0, T* S1) {
    auto s = gradient_sums<NONE, T>({g, ldg}, {x, ldx}, nullptr, A, B, mean, groups, rows, C, threads, {nullptr, 0});
    for (long g = 0; g < groups; g++)
      for (long c = 0; c < C; c++) S0[g * C + c] = T(s[2 * g * C + c]), S1[g * C + c] = T(s[(2 * g + 1) * C + c]);
  }

  // The map s = hardsigmoid(w . x).
  static void gate(const T* x, long ldx, const T* w, long rows, long C, int threads, T* s) {
    parallel(1, rows, threads, threads, [=](long, long, long r, long end) {
      for (; r < end; r++) s[r] = clamp(dot(x + r * ldx, w, C) / 6 + T(0.5));
    });
  }

  // The other channels of y: x * clamp(W [mean, std] + bias, 0, 1), and those of y1 before them.
  static void channel_gate(const T* x, long ldx, const T* y1, long ld1, long convolved, const T* W, const T* bias,
                           long groups, long rows, long C, int threads, T* y, long ldy) {
    std::vector<T> buffer(3 * groups * C);
    T *mean = buffer.data(), *var = mean + groups * C, *shift = var + groups * C;
    ::moments<T>({x, ldx}, nullptr, groups, rows, C, threads, mean, var);
    std::vector<T> squeezed(2 * C);
    for (long g = 0; g < groups; g++) {
      for (long c = 0; c < C; c++) {
        squeezed[c] = mean[g * C + c];
        squeezed[C + c] = std::sqrt(var[g * C + c] * rows / std::max(rows - 1, 1L));
      }
      for (long c = 0; c < C; c++) mean[g * C + c] = clamp(dot<T>(W + 2 * C * c, squeezed.data(), 2 * C) + bias[c]);
    }
    std::fill(shift, shift + groups * C, T(0));
    ::affine<NONE, T>({x, ldx}, nullptr, mean, shift, groups, rows, C, threads, {y + convolved, ldy});
    for (long r = 0; r < groups * rows; r++) std::copy_n(y1 + r * ld1, convolved, y + r * ldy);
  }

  // y = x * (s * scale + keep) + shift + shortcut, with s = clamp(w . x + bias, 0, 1).
  static void spatial(const T* x, long ldx, const T* w, const T* bias, const T* scale, const T* keep, const T* shift,
                      const T* shortcut, long lds, long rows, long C, int threads, T* y, long ldy) {
    parallel(1, rows, threads, threads, [=](long, long, long r, long end) {
      for (; r < end; r++) {
        const T *p = x + r * ldx, *q = shortcut + r * lds;
        T *out = y + r * ldy, s = clamp(dot(p, w, C) + *bias);
#pragma omp simd
        for (long c = 0; c < C; c++) out[c] = p[c] * (s * scale[c] + keep[c]) + shift[c] + q[c];
      }
    });
  }
};

#define FUNCTIONS(T)                                                                                              \
  (void*)Functions<T>::norm, (void*)Functions<T>::norm_backward, (void*)Functions<T>::moments,                   \
      (void*)Functions<T>::affine, (void*)Functions<T>::sums, (void*)Functions<T>::backward,                     \
      (void*)Functions<T>::gate, (void*)Functions<T>::spatial, (void*)Functions<T>::channel_gate
extern "C" {
void* functions[] = {FUNCTIONS(float), FUNCTIONS(double)};
}
