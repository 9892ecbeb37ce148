// What the fused CPU kernels share: exponentials, loads and stores by element type, multiply-adds.
//
// Needs AVX-512 (and AVX512_BF16 for bfloat16). In an unnamed namespace: every file that includes it has its own.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "cpu_kernels.h"

namespace {

inline __m512 exp512(__m512 x) {
  // 2^n * exp(r), |r| <= ln2 / 2; the polynomial is the Taylor series to degree 7.
  // The order of the operands lets a NaN through.
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504089f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

inline __mmask16 head_mask(int64_t count) {
  return count >= 16 ? __mmask16(0xFFFF) : __mmask16((1u << std::max<int64_t>(count, 0)) - 1);
}

// 16 elements to and from float32, and a reciprocal as exact as the element type can tell.
inline __m512 load16(const float* p, __mmask16 m = 0xFFFF) { return _mm512_maskz_loadu_ps(m, p); }
inline void store16(float* p, __m512 v, __mmask16 m = 0xFFFF) { _mm512_mask_storeu_ps(p, m, v); }
inline __m512 round_as(const float*, __m512 v) { return v; }
inline __m512 inverse_as(const float*, __m512 x) { return _mm512_div_ps(_mm512_set1_ps(1.0f), x); }

#ifdef __AVX512BF16__
inline __m512 load16(const bf16* p, __mmask16 m = 0xFFFF) {
  const __m256i half = _mm256_maskz_loadu_epi16(m, p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline void store16(bf16* p, __m512 v, __mmask16 m = 0xFFFF) {
  _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(v));
}
inline __m512 inverse_as(const bf16*, __m512 x) { return _mm512_rcp14_ps(x); }
inline __m512 round_as(const bf16*, __m512 v) {
  const __m256i half = (__m256i)_mm512_cvtneps_pbh(v);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
#endif

// Powers as exact as the element type can tell: `of(x * kUnit)` is e^x. The caller folds the unit into a factor by
// which it multiplies anyway.
template <typename T>
struct Power;
template <>
struct Power<float> {
  static constexpr float kUnit = 1.0f;
  static __m512 of(__m512 x) { return exp512(x); }
};
#ifdef __AVX512BF16__
template <>
struct Power<bf16> {
  static constexpr float kUnit = 1.44269504089f;  // log2(e)
  static __m512 of(__m512 x) {
    // 2^floor(x) * 2^r; the polynomial is the minimax one that is 1 at 0, 3e-6 off where a bfloat16 is 2e-3 or more.
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(0.013426693f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.052242458f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.24128021f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.69304484f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x);
  }
};
#endif

template <typename T>
inline __m512 sigmoid(__m512 x) {
  const __m512 power = Power<T>::of(_mm512_mul_ps(x, _mm512_set1_ps(-Power<T>::kUnit)));
  return inverse_as(static_cast<const T*>(nullptr), _mm512_add_ps(_mm512_set1_ps(1.0f), power));
}

// One multiply-add of 32-bit words: a float32, or a pair of bfloat16.
template <typename T>
struct Word;
template <>
struct Word<float> {
  static constexpr int kPer = 1;
  static __m512 fma(__m512 acc, const uint32_t* a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(*a)), _mm512_castsi512_ps(b), acc);
  }
};
#ifdef __AVX512BF16__
template <>
struct Word<bf16> {
  static constexpr int kPer = 2;
  static __m512 fma(__m512 acc, const uint32_t* a, __m512i b) {
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32(*a), (__m512bh)b);
  }
};
#endif

}  // namespace
