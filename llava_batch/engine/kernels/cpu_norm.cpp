// What is computed of each row by itself: norms, quick-GELU, and the best token of a row of logits.
//
// Needs AVX-512 (and AVX512_BF16 for bfloat16).

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu_vectors.h"

namespace {

// A row's entries [0, dim), 16 at a time: `of(d, mask)`, whose mask is known when it is compiled but for the last ones'.
template <typename F>
inline __attribute__((always_inline)) void by16(int64_t dim, F of) {
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) of(d, __mmask16(0xFFFF));
  if (d < dim) of(d, head_mask(dim - d));
}

// N rows, each with the bits that it has alone: the weight is loaded once for all, and no sum waits for its own last one.
template <typename T, int N>
inline void rms_norms(const T* x, const T* weight, T* out, int64_t dim, float epsilon) {
  __m512 sum[N], scale[N];
  for (auto& of_row : sum) of_row = _mm512_setzero_ps();
  by16(dim, [=, &sum](int64_t d, __mmask16 m) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
      const __m512 v = load16(x + i * dim + d, m);
      sum[i] = _mm512_fmadd_ps(v, v, sum[i]);
    }
  });
  for (int i = 0; i < N; i++) {
    const float mean = _mm512_reduce_add_ps(sum[i]) / static_cast<float>(dim);
    scale[i] = _mm512_set1_ps(1.0f / std::sqrt(mean + epsilon));
  }
  by16(dim, [=, &scale](int64_t d, __mmask16 m) __attribute__((always_inline)) {
    const __m512 w = load16(weight + d, m);
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {  // rounded before the weight, as transformers does
      const __m512 v = round_as(x, _mm512_mul_ps(load16(x + i * dim + d, m), scale[i]));
      store16(out + i * dim + d, _mm512_mul_ps(v, w), m);
    }
  });
}

template <typename T>
void rms_norm(const T* in, const T* weight, T* out, int64_t rows, int64_t dim, double epsilon) {
  constexpr int64_t kTogether = 4;
#pragma omp parallel for if (rows * dim > 16384)
  for (int64_t from = 0; from < rows; from += kTogether) {
    const int64_t to = std::min(rows, from + kTogether);
    if (to - from == kTogether)
      rms_norms<T, kTogether>(in + from * dim, weight, out + from * dim, dim, epsilon);
    else
      for (int64_t row = from; row < to; row++)
        rms_norms<T, 1>(in + row * dim, weight, out + row * dim, dim, epsilon);
  }
}

// torch's LayerNorm: in float32 throughout, rounded once.
template <typename T>
void layer_norm(const T* in, const T* weight, const T* bias, T* out, int64_t rows, int64_t dim,
                double epsilon) {
#pragma omp parallel for if (rows * dim > 16384)
  for (int64_t row = 0; row < rows; row++) {
    const T* x = in + row * dim;
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (int64_t d = 0; d < dim; d += 16) sum = _mm512_add_ps(sum, load16(x + d, head_mask(dim - d)));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / static_cast<float>(dim));
    for (int64_t d = 0; d < dim; d += 16) {
      const __mmask16 m = head_mask(dim - d);
      const __m512 v = _mm512_maskz_sub_ps(m, load16(x + d, m), mean);
      squares = _mm512_fmadd_ps(v, v, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / static_cast<float>(dim);
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(variance + static_cast<float>(epsilon)));
    for (int64_t d = 0; d < dim; d += 16) {
      const __mmask16 m = head_mask(dim - d);
      const __m512 v = _mm512_mul_ps(_mm512_sub_ps(load16(x + d, m), mean), scale);
      store16(out + row * dim + d, _mm512_fmadd_ps(v, load16(weight + d, m), load16(bias + d, m)), m);
    }
  }
}

// x * sigmoid(1.702 x), in place.
template <typename T>
void quick_gelu(T* x, int64_t count) {
#pragma omp parallel for if (count > 16384)
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 m = head_mask(count - i);
    const __m512 v = load16(x + i, m);
    const __m512 gate = sigmoid<T>(_mm512_mul_ps(v, _mm512_set1_ps(1.702f)));
    store16(x + i, _mm512_mul_ps(v, gate), m);
  }
}

// Of each row of logits: the first highest entry, and the logarithm of the sum of exponentials.
template <typename T>
void best_token(const T* logits, int64_t rows, int64_t size, int64_t* best, float* value,
                float* log_sum) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t row = 0; row < rows; row++) {
    const T* x = logits + row * size;
    const float lowest = -std::numeric_limits<float>::infinity();
    __m512 top = _mm512_set1_ps(lowest);
    for (int64_t d = 0; d < size; d += 16) {
      const __mmask16 m = head_mask(size - d);
      top = _mm512_mask_max_ps(top, m, top, load16(x + d, m));
    }
    const float highest = _mm512_reduce_max_ps(top);
    __m512 sum = _mm512_setzero_ps();
    int64_t found = -1;
    for (int64_t d = 0; d < size; d += 16) {
      const __mmask16 m = head_mask(size - d);
      const __m512 v = load16(x + d, m);
      const __m512 p = exp512(_mm512_sub_ps(v, _mm512_set1_ps(highest)));
      sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(m, p));
      const __mmask16 same = _mm512_mask_cmp_ps_mask(m, v, _mm512_set1_ps(highest), _CMP_EQ_OQ);
      if (found < 0 && same) found = d + __builtin_ctz(same);
    }
    // A NaN is skipped by max but not by the sum: log_sum is NaN then, which the caller checks.
    best[row] = std::max<int64_t>(found, 0);
    value[row] = highest;
    log_sum[row] = highest + std::log(_mm512_reduce_add_ps(sum));
  }
}

}  // namespace

#define KERNELS(NAME, T)                                                                          \
  void rms_norm_##NAME(const T* x, const T* w, T* o, int64_t rows, int64_t dim, double epsilon) { \
    rms_norm(x, w, o, rows, dim, epsilon);                                                        \
  }                                                                                               \
  void layer_norm_##NAME(const T* x, const T* w, const T* b, T* o, int64_t rows, int64_t dim,     \
                         double epsilon) {                                                        \
    layer_norm(x, w, b, o, rows, dim, epsilon);                                                   \
  }                                                                                               \
  void quick_gelu_##NAME(T* x, int64_t count) { quick_gelu(x, count); }                           \
  void best_token_##NAME(const T* x, int64_t rows, int64_t size, int64_t* best, float* value,     \
                         float* log_sum) {                                                        \
    best_token(x, rows, size, best, value, log_sum);                                              \
  }

extern "C" {
KERNELS(float32, float)
#ifdef __AVX512BF16__
KERNELS(bfloat16, bf16)
#endif
}
