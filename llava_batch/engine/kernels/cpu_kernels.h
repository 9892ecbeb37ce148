// What the files of fused CPU kernels know of each other: shapes, and the functions that Python calls too.

#pragma once

#include <cstdint>

using bf16 = uint16_t;

struct Attention {
  int64_t batch, heads, kv_heads, dim, length;
  int64_t q_batch, q_head, q_token;      // strides of the queries
  int64_t k_slot, k_head, k_token;       // strides of keys and values, in a row of one slot
  int64_t o_batch, o_head, o_token;      // strides of the output
  int64_t causal, window;                // window 0: none
  double scaling;
};

// Which slots the rows have, what they hold, what is added, and how many slots each has; a slot whose first `shared`
// tokens are the row's own, too.
struct Rows {
  const int64_t *slots, *past, *count, *widths, *origins, *shared;
};

enum Form : int64_t { kPlain = 0, kQuickGelu = 1, kGated = 2 };

struct Product {
  int64_t rows, inner, columns;  // columns of the result
  int64_t form;
};

#define DECLARE(NAME, T)                                                                           \
  extern "C" {                                                                                     \
  void prefill_##NAME(const Attention*, const T* q, const T* k, const T* v, T* out, const Rows*);  \
  void decode_##NAME(const Attention*, const T* q, const T* k, const T* v, T* out, const Rows*);   \
  void rope_store_##NAME(const Attention*, T* qkv, const T* cosine, const T* sine, T* k, T* v,     \
                         const Rows*);                                                             \
  void rms_norm_##NAME(const T* x, const T* weight, T* out, int64_t rows, int64_t dim,             \
                       double epsilon);                                                            \
  void layer_norm_##NAME(const T* x, const T* weight, const T* bias, T* out, int64_t rows,         \
                         int64_t dim, double epsilon);                                             \
  void product_##NAME(const Product*, const T* x, const uint32_t* weight, const T* bias,           \
                      const T* residual, T* out);                                                  \
  }

DECLARE(float32, float)
#ifdef __AVX512BF16__
DECLARE(bfloat16, bf16)
#endif
