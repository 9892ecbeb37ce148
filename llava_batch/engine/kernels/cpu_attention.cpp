// Attention over slots: a prompt's, a decode step's, and the rotation that writes keys and values to their slots.
//
// Legend: B rows, Q left-padded queries of a row, Hq query heads, H K/V heads, D head size, S slots,
// L slot length. Strides are in elements; the last dimension of every tensor is contiguous.
// Needs AVX-512 (and AVX512_BF16 for bfloat16); D a multiple of 16. The plain torch form of every
// kernel stands in plain.py and in transformers; the tests hold the two against each other.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu_vectors.h"

namespace {

constexpr int kRows = 6;    // queries of one register block: 6 x 4 accumulators
constexpr int kKeys = 64;   // keys of one register block
constexpr int kAhead = 64;  // keys, and values, ahead of which a decode step asks for others

// Memory of one thread; it grows to the largest call and is kept.
struct Scratch {
  void* data = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(data); }
  char* get(size_t wanted) {
    if (wanted > size) {
      std::free(data);
      size = (wanted + 4095) & ~size_t{4095};
      data = std::aligned_alloc(4096, size);
    }
    return static_cast<char*>(data);
  }
};
thread_local Scratch scratch;

// The line there, into the second-level cache; an address where nothing is does no harm.
inline void ask_for(const void* address) {
  _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T1);
}

// 16 x 16 words: row i of `in` (stride words apart) becomes column i of `out`.
inline void transpose16(const uint32_t* in, int64_t in_stride, int rows, uint32_t* out,
                        int64_t out_stride) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i++)
    a[i] = i < rows ? _mm512_loadu_si512(in + i * in_stride) : _mm512_setzero_si512();
  for (int i = 0; i < 8; i++) {
    b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
    a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
    a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
    a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    _mm512_storeu_si512(out + i * out_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
    _mm512_storeu_si512(out + (i + 8) * out_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
  }
}

// A row of 8 words (D = 16 in bfloat16) is half a vector: go word by word.
inline void transpose_any(const uint32_t* in, int64_t in_stride, int rows, int words, uint32_t* out,
                          int64_t out_stride) {
  for (int w = 0; w < words; w++)
    for (int i = 0; i < 16; i++) out[w * out_stride + i] = i < rows ? in[i * in_stride + w] : 0;
}

// Keys [first, last) of one head, [T, D], as words [D / kPer][padded]; what is behind them is zero. Rows at `ahead`
// are asked for meanwhile.
template <typename T>
void pack_keys(const T* key, int64_t stride, int64_t count, int64_t padded, int dim, uint32_t* out,
               const T* ahead = nullptr) {
  const int words = dim / Word<T>::kPer;
  const int64_t word_stride = stride / Word<T>::kPer;
  const auto* in = reinterpret_cast<const uint32_t*>(key);
  for (int64_t j = 0; j < padded; j += 16) {
    const int rows = static_cast<int>(std::clamp<int64_t>(count - j, 0, 16));
    const uint32_t* from = in + j * word_stride;
    int w = 0;
    for (; w + 16 <= words; w += 16) {
      if (ahead)
        for (int i = 0; i < 16; i++)
          ask_for(ahead + (j + i) * stride + w * Word<T>::kPer);
      transpose16(from + w, word_stride, rows, out + w * padded + j, padded);
    }
    if (w < words)
      transpose_any(from + w, word_stride, rows, words - w, out + w * padded + j, padded);
  }
}

// Values as words: float32 rows as they are, bfloat16 as pairs of two neighbouring rows.
inline void pack_values(const float* value, int64_t stride, int64_t count, int64_t padded, int dim,
                        uint32_t* out) {
  for (int64_t j = 0; j < padded; j++) {
    if (j < count)
      std::memcpy(out + j * dim, value + j * stride, dim * sizeof(float));
    else
      std::memset(out + j * dim, 0, dim * sizeof(float));
  }
}
#ifdef __AVX512BF16__
inline void pack_values(const bf16* value, int64_t stride, int64_t count, int64_t padded, int dim,
                        uint32_t* out) {
  for (int64_t j = 0; j < padded; j += 2) {
    for (int d = 0; d < dim; d += 16) {
      __m512i low = _mm512_setzero_si512(), high = low;
      const bf16* at = value + j * stride + d;
      if (j < count) low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at));
      if (j + 1 < count)
        high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(at + stride)));
      _mm512_storeu_si512(out + (j / 2) * dim + d,
                          _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}
#endif

// scores[i][j] = query i . key j, for N queries and 16 * V keys from j on.
template <typename T, int N, int V>
inline __attribute__((always_inline)) void score_part(const uint32_t* const* query,
                                                      const uint32_t* keys, int64_t padded,
                                                      int words, int64_t j, float* scores,
                                                      int64_t stride) {
  __m512 acc[N][V];
  for (auto& row : acc)
    for (auto& part : row) part = _mm512_setzero_ps();
  for (int w = 0; w < words; w++) {
    __m512i b[V];
#pragma GCC unroll 4
    for (int part = 0; part < V; part++)
      b[part] = _mm512_loadu_si512(keys + w * padded + j + 16 * part);
#pragma GCC unroll 6
    for (int i = 0; i < N; i++)
#pragma GCC unroll 4
      for (int part = 0; part < V; part++)
        acc[i][part] = Word<T>::fma(acc[i][part], query[i] + w, b[part]);
  }
  // Unrolled, so that no sum leaves its register before.
#pragma GCC unroll 6
  for (int i = 0; i < N; i++)
#pragma GCC unroll 4
    for (int part = 0; part < V; part++)
      _mm512_storeu_ps(scores + i * stride + j + 16 * part, acc[i][part]);
}

// The same for keys [begin, end), a whole number of vectors.
template <typename T, int N>
void score_block(const uint32_t* const* query, const uint32_t* keys, int64_t padded, int words,
                 int64_t begin, int64_t end, float* scores, int64_t stride) {
  int64_t j = begin;
  for (; j + kKeys <= end; j += kKeys)
    score_part<T, N, 4>(query, keys, padded, words, j, scores, stride);
  switch ((end - j) / 16) {
    case 3: return score_part<T, N, 3>(query, keys, padded, words, j, scores, stride);
    case 2: return score_part<T, N, 2>(query, keys, padded, words, j, scores, stride);
    case 1: return score_part<T, N, 1>(query, keys, padded, words, j, scores, stride);
  }
}

// Softmax numerators of scores [low, high), zero elsewhere in [begin, end); returns their sum. begin and end are whole
// vectors.
template <typename T>
float softmax_row(float* scores, T* weights, int64_t begin, int64_t end, int64_t low, int64_t high,
                  float scaling) {
  // Vectors of which nothing is hidden lie in [inner, outer); the others are masked.
  const int64_t inner = (low + 15) / 16 * 16;
  const int64_t outer = std::max(inner, high / 16 * 16);
  auto seen = [&](int64_t j) {
    return __mmask16(head_mask(high - j) & ~head_mask(low - j));
  };
  __m512 top = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  auto edges = [&](int64_t from, int64_t to) {
    for (int64_t j = from; j < to; j += 16)
      top = _mm512_mask_max_ps(top, seen(j), top, _mm512_loadu_ps(scores + j));
  };
  edges(begin, inner);
  for (int64_t j = inner; j < outer; j += 16) top = _mm512_max_ps(top, _mm512_loadu_ps(scores + j));
  edges(outer, end);

  const float scale = scaling * Power<T>::kUnit;
  const __m512 factor = _mm512_set1_ps(scale);
  const __m512 shift = _mm512_set1_ps(_mm512_reduce_max_ps(top) * scale);
  __m512 sum = _mm512_setzero_ps();
  auto numerators = [&](int64_t j, __mmask16 mask) {
    const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + j), factor, shift);
    const __m512 p = _mm512_maskz_mov_ps(mask, Power<T>::of(x));
    sum = _mm512_add_ps(sum, p);
    store16(weights + j, p);
  };
  for (int64_t j = begin; j < inner; j += 16) numerators(j, seen(j));
  for (int64_t j = inner; j < outer; j += 16) numerators(j, 0xFFFF);
  for (int64_t j = outer; j < end; j += 16) numerators(j, seen(j));
  return _mm512_reduce_add_ps(sum);
}

// out[i][d] = sum_j weights[i][j] * value[j][d] / sum[i], for 16 * NV values of d.
template <typename T, int NV>
void value_block(const T* weights, int64_t stride, const uint32_t* values, int dim, int64_t begin,
                 int64_t end, const float* sum, int rows, T* const* out) {
  constexpr int per = Word<T>::kPer;
  __m512 acc[kRows][NV];
  for (auto& row : acc)
    for (auto& part : row) part = _mm512_setzero_ps();
  for (int64_t j = begin / per; j < (end + per - 1) / per; j++) {
    __m512i b[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) b[v] = _mm512_loadu_si512(values + j * dim + 16 * v);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; i++) {
      const auto* a = reinterpret_cast<const uint32_t*>(weights + i * stride) + j;
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) acc[i][v] = Word<T>::fma(acc[i][v], a, b[v]);
    }
  }
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < NV; v++)
      store16(out[i] + 16 * v, _mm512_div_ps(acc[i][v], _mm512_set1_ps(sum[i])));
}

// Queries [from, to) of one row and one K/V head, all its query heads.
template <typename T>
void prefill_task(const Attention& a, const T* query, const T* key, const T* value, T* out,
                  int64_t past, int64_t count, int64_t from, int64_t to) {
  const int dim = static_cast<int>(a.dim), words = dim / Word<T>::kPer;
  const int64_t total = past + count;
  // A whole number of blocks, so that where a query's sums begin does not depend on `from`.
  const int64_t first =
      a.window ? std::max<int64_t>(0, past + from - a.window + 1) / kKeys * kKeys : 0;
  const int64_t last = a.causal ? past + to : total;
  const int64_t padded = (last - first + kKeys - 1) / kKeys * kKeys;
  // A word more than a multiple of a page: rows must not fall on one another in the cache.
  const int64_t stride = padded + 16;
  const size_t key_bytes = sizeof(uint32_t) * words * padded;
  const size_t value_bytes = sizeof(uint32_t) * dim * (padded / Word<T>::kPer);
  const size_t score_bytes = sizeof(float) * kRows * stride;
  char* memory = scratch.get(key_bytes + value_bytes + 2 * score_bytes + 256);
  auto* keys = reinterpret_cast<uint32_t*>(memory);
  auto* values = reinterpret_cast<uint32_t*>(memory + key_bytes);
  auto* scores = reinterpret_cast<float*>(memory + key_bytes + value_bytes);
  auto* weights = reinterpret_cast<T*>(memory + key_bytes + value_bytes + score_bytes);
  pack_keys(key + first * a.k_token, a.k_token, last - first, padded, dim, keys);
  pack_values(value + first * a.k_token, a.k_token, last - first, padded, dim, values);

  for (int64_t head = 0; head < a.heads / a.kv_heads; head++) {
    for (int64_t i = from; i < to; i += kRows) {
      const int rows = static_cast<int>(std::min<int64_t>(kRows, to - i));
      const uint32_t* q[kRows];
      T* o[kRows];
      float sum[kRows];
      for (int r = 0; r < kRows; r++) {
        const int64_t token = i + std::min(r, rows - 1);
        q[r] = reinterpret_cast<const uint32_t*>(query + head * a.q_head + token * a.q_token);
        o[r] = out + head * a.o_head + token * a.o_token;
      }
      const int64_t highest = (a.causal ? past + i + rows : total) - first;
      const int64_t lowest = a.window ? std::max<int64_t>(0, past + i - a.window + 1) - first : 0;
      const int64_t begin = lowest / kKeys * kKeys;
      const int64_t end = (highest + 15) / 16 * 16;
      score_block<T, kRows>(q, keys, padded, words, begin, end, scores, stride);
      for (int r = 0; r < kRows; r++) {
        const int64_t position = past + i + std::min(r, rows - 1);
        const int64_t high = (a.causal ? position + 1 : total) - first;
        const int64_t low = a.window ? std::max<int64_t>(0, position - a.window + 1) - first : 0;
        sum[r] = softmax_row(scores + r * stride, weights + r * stride, begin, end, low, high,
                             static_cast<float>(a.scaling));
      }
      for (int d = 0; d < dim; d += 64) {
        T* at[kRows];
        for (int r = 0; r < kRows; r++) at[r] = o[r] + d;
        const uint32_t* v = values + d;
        switch (std::min(64, dim - d) / 16) {
          case 4: value_block<T, 4>(weights, stride, v, dim, begin, highest, sum, rows, at); break;
          case 3: value_block<T, 3>(weights, stride, v, dim, begin, highest, sum, rows, at); break;
          case 2: value_block<T, 2>(weights, stride, v, dim, begin, highest, sum, rows, at); break;
          default: value_block<T, 1>(weights, stride, v, dim, begin, highest, sum, rows, at);
        }
      }
    }
  }
}

template <typename T>
void prefill(const Attention& a, const T* query, const T* key, const T* value, T* out,
             const Rows& rows) {
  const int64_t *slots = rows.slots, *past = rows.past, *count = rows.count, *widths = rows.widths;
  const int64_t threads = omp_get_max_threads();
  const int64_t pairs = a.batch * a.kv_heads;
  // Few heads and many threads: cut the queries as well, at the price of packing keys again.
  const int64_t chunks = std::clamp<int64_t>((4 * threads + pairs - 1) / pairs, 1,
                                             (a.length + 127) / 128);
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int64_t pair = 0; pair < pairs; pair++) {
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      const int64_t row = pair / a.kv_heads, head = pair % a.kv_heads;
      const int64_t from = count[row] * chunk / chunks, to = count[row] * (chunk + 1) / chunks;
      if (from == to) continue;
      const int64_t group = head * (a.heads / a.kv_heads), pad = a.length - count[row];
      const int64_t at = slots[row] * a.k_slot + head * widths[row] * a.k_head;
      prefill_task(a, query + row * a.q_batch + group * a.q_head + pad * a.q_token,
                   key + at, value + at,
                   out + row * a.o_batch + group * a.o_head + pad * a.o_token, past[row],
                   count[row], from, to);
    }
  }
}

// A row's keys or values: the first `shared` tokens also lie where other rows read them, and are read from there while
// they are in the cache.
template <typename T>
struct Halves {
  const T *own, *first;
  int64_t shared;
  // Where `count` tokens from j on are read.
  const T* at(int64_t j, int64_t count) const { return j + count <= shared ? first : own; }
  Halves from(int64_t token, int64_t stride) const {
    return {own + token * stride, first + token * stride, shared - token};
  }
  Halves plus(int64_t entries) const { return {own + entries, first + entries, shared}; }
};

// out[d] = sum_j weights[j] * value[j][d] / sum, for `width` <= 64 values of d: `value_block` of one
// query, its order of adding kept, from values as they lie.
inline void value_row(const float* weights, const Halves<float>& value, int64_t stride, int64_t end,
                      float sum, int width, float* out) {
  __m512 acc[4] = {};
  const int vectors = width / 16;
  for (int64_t j = 0; j < end; j++) {
    const __m512 p = _mm512_set1_ps(weights[j]);
    const float* at = value.at(j, 1) + j * stride;
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++)
      if (v < vectors) {
        ask_for(at + kAhead * stride + 16 * v);
        acc[v] = _mm512_fmadd_ps(p, _mm512_loadu_ps(at + 16 * v), acc[v]);
      }
  }
  for (int v = 0; v < vectors; v++)
    store16(out + 16 * v, _mm512_div_ps(acc[v], _mm512_set1_ps(sum)));
}
#ifdef __AVX512BF16__
inline void value_row(const bf16* weights, const Halves<bf16>& value, int64_t stride, int64_t end,
                      float sum, int width, bf16* out) {
  // Two neighbouring rows interleaved within their quarters; the quarters are put in order at the end.
  __m512 low[2] = {}, high[2] = {};
  const __mmask32 mask[2] = {width > 16 ? 0xFFFFFFFFu : 0xFFFFu,
                             width > 48 ? 0xFFFFFFFFu : width > 32 ? 0xFFFFu : 0u};
  const bool wide = width > 32;
  for (int64_t j = 0; j < end; j += 2) {
    const __m512bh p = (__m512bh)_mm512_set1_epi32(*reinterpret_cast<const int32_t*>(weights + j));
    const bf16* at = value.at(j, 2) + j * stride;
    const bool two = j + 1 < end;
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      if (h && !wide) break;
      ask_for(at + kAhead * stride + 32 * h);
      ask_for(at + (kAhead + 1) * stride + 32 * h);
      const __m512i a = _mm512_maskz_loadu_epi16(mask[h], at + 32 * h);
      const __m512i b = two ? _mm512_maskz_loadu_epi16(mask[h], at + stride + 32 * h)
                            : _mm512_setzero_si512();
      low[h] = _mm512_dpbf16_ps(low[h], p, (__m512bh)_mm512_unpacklo_epi16(a, b));
      high[h] = _mm512_dpbf16_ps(high[h], p, (__m512bh)_mm512_unpackhi_epi16(a, b));
    }
  }
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  const __m512 divisor = _mm512_set1_ps(sum);
  for (int d = 0; d < width; d += 16) {
    const int h = d / 32;
    const __m512 all = _mm512_permutex2var_ps(low[h], d % 32 ? second : first, high[h]);
    store16(out + d, _mm512_div_ps(all, divisor));
  }
}
#endif

// The queries of one row and one K/V head against the keys [low, high) of its slot. Its bits are those
// that `prefill_task` gives this query: same products, same sums, same order.
template <typename T>
void decode_task(const Attention& a, const T* query, Halves<T> key, Halves<T> value, T* out,
                 int64_t low, int64_t high) {
  const int dim = static_cast<int>(a.dim), words = dim / Word<T>::kPer;
  const int64_t group = a.heads / a.kv_heads;
  const int64_t begin = low / kKeys * kKeys, end = (high + kKeys - 1) / kKeys * kKeys;
  const int64_t stride = end - begin + 16;
  const size_t key_bytes = sizeof(uint32_t) * words * kKeys;
  const size_t score_bytes = sizeof(float) * group * stride;
  char* memory = scratch.get(key_bytes + 2 * score_bytes);
  auto* keys = reinterpret_cast<uint32_t*>(memory);
  auto* scores = reinterpret_cast<float*>(memory + key_bytes);
  auto* weights = reinterpret_cast<T*>(memory + key_bytes + score_bytes);
  key = key.from(begin, a.k_token);
  value = value.from(begin, a.k_token);
  low -= begin;
  high -= begin;
  const int64_t whole = end - begin;
  for (int64_t j = 0; j < whole; j += kKeys) {
    const int64_t count = std::min<int64_t>(kKeys, high - j);
    // The next block is asked for now: of keys, and behind them the first values.
    const int64_t later = j + kAhead, behind = std::max<int64_t>(0, later - whole);
    const T* ahead = later < high ? key.at(later, kKeys) + later * a.k_token
                                  : value.at(behind, kKeys) + behind * a.k_token;
    pack_keys(key.at(j, kKeys) + j * a.k_token, a.k_token, count, kKeys, dim, keys, ahead);
    for (int64_t g = 0; g < group; g++) {
      const auto* q = reinterpret_cast<const uint32_t*>(query + g * a.q_head);
      score_block<T, 1>(&q, keys, kKeys, words, 0, kKeys, scores + g * stride + j, 0);
    }
  }
  for (int64_t g = 0; g < group; g++) {
    T* weight = weights + g * stride;
    const float sum = softmax_row(scores + g * stride, weight, int64_t{0}, whole, low, high,
                                  static_cast<float>(a.scaling));
    for (int d = 0; d < dim; d += 64)
      value_row(weight, value.plus(d), a.k_token, high, sum, std::min(64, dim - d),
                out + g * a.o_head + d);
  }
}

struct Task {
  int64_t row, head;
};

// Row by row; those of one origin together, head by head: what they share is then still in the cache.
inline std::vector<Task> in_order(const Attention& a, const int64_t* origins) {
  std::vector<int64_t> rows(a.batch);
  std::iota(rows.begin(), rows.end(), int64_t{0});
  std::stable_sort(rows.begin(), rows.end(),
                   [origins](int64_t i, int64_t j) { return origins[i] < origins[j]; });
  std::vector<Task> tasks;
  tasks.reserve(a.batch * a.kv_heads);
  for (int64_t from = 0, to = 0; from < a.batch; from = to) {
    while (to < a.batch && origins[rows[to]] == origins[rows[from]]) to++;
    for (int64_t head = 0; head < a.kv_heads; head++)
      for (int64_t n = from; n < to; n++) tasks.push_back({rows[n], head});
  }
  return tasks;
}

template <typename T>
void decode(const Attention& a, const T* query, const T* key, const T* value, T* out,
            const Rows& rows) {
  const int64_t *slots = rows.slots, *past = rows.past, *widths = rows.widths;
  const int64_t *origins = rows.origins, *shared = rows.shared;
  const int64_t group = a.heads / a.kv_heads;
  const std::vector<Task> tasks = in_order(a, origins);
#pragma omp parallel for schedule(dynamic, 4)
  for (size_t n = 0; n < tasks.size(); n++) {
    const auto [row, head] = tasks[n];
    const int64_t high = past[row] + 1, low = a.window ? std::max<int64_t>(0, high - a.window) : 0;
    const int64_t own = slots[row] * a.k_slot + head * widths[row] * a.k_head;
    const int64_t first = origins[row] * a.k_slot + head * widths[row] * a.k_head;
    decode_task(a, query + row * a.q_batch + head * group * a.q_head,
                Halves<T>{key + own, key + first, shared[row]},
                Halves<T>{value + own, value + first, shared[row]},
                out + row * a.o_batch + head * group * a.o_head, low, high);
  }
}

// Rotary embedding of one head: halves (x, y) become (x cos - y sin, y cos + x sin).
template <typename T>
inline void rotate(const T* in, const T* cosine, const T* sine, T* out, int dim) {
  const int half = dim / 2;
  for (int d = 0; d < half; d += 16) {
    const __mmask16 m = head_mask(half - d);
    const __m512 x = load16(in + d, m), y = load16(in + half + d, m);
    const __m512 low = _mm512_fnmadd_ps(y, load16(sine + d, m),
                                        _mm512_mul_ps(x, load16(cosine + d, m)));
    const __m512 high = _mm512_fmadd_ps(x, load16(sine + half + d, m),
                                        _mm512_mul_ps(y, load16(cosine + half + d, m)));
    store16(out + d, low, m);
    store16(out + half + d, high, m);
  }
}

// qkv [B * Q, (Hq + 2 H) D]: queries are rotated in place, keys and values go to their slots.
template <typename T>
void rope_store(T* qkv, const T* cosine, const T* sine, T* key, T* value, const Attention& a,
                const Rows& rows) {
  const int64_t *slots = rows.slots, *past = rows.past, *count = rows.count, *widths = rows.widths;
  const int64_t width = (a.heads + 2 * a.kv_heads) * a.dim;
  const int dim = static_cast<int>(a.dim);
#pragma omp parallel for
  for (int64_t token = 0; token < a.batch * a.length; token++) {
    const int64_t row = token / a.length;
    const int64_t place = token % a.length - (a.length - count[row]);
    if (place < 0) continue;
    T* in = qkv + token * width;
    const T* c = cosine + token * dim;
    const T* s = sine + token * dim;
    for (int64_t h = 0; h < a.heads; h++) rotate(in + h * dim, c, s, in + h * dim, dim);
    const int64_t at = slots[row] * a.k_slot + (past[row] + place) * a.k_token;
    const int64_t step = widths[row] * a.k_head;
    in += a.heads * dim;
    for (int64_t h = 0; h < a.kv_heads; h++)
      rotate(in + h * dim, c, s, key + at + h * step, dim);
    in += a.kv_heads * dim;
    for (int64_t h = 0; h < a.kv_heads; h++)
      std::memcpy(value + at + h * step, in + h * dim, dim * sizeof(T));
  }
}

}  // namespace

#define KERNELS(NAME, T)                                                                          \
  void prefill_##NAME(const Attention* a, const T* q, const T* k, const T* v, T* o,               \
                      const Rows* rows) {                                                         \
    prefill(*a, q, k, v, o, *rows);                                                               \
  }                                                                                               \
  void decode_##NAME(const Attention* a, const T* q, const T* k, const T* v, T* o,                \
                     const Rows* rows) {                                                          \
    decode(*a, q, k, v, o, *rows);                                                                \
  }                                                                                               \
  void rope_store_##NAME(const Attention* a, T* qkv, const T* c, const T* s, T* k, T* v,          \
                         const Rows* rows) {                                                      \
    rope_store(qkv, c, s, k, v, *a, *rows);                                                       \
  }

extern "C" {
KERNELS(float32, float)
#ifdef __AVX512BF16__
KERNELS(bfloat16, bf16)
#endif
}
