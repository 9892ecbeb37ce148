// Whole layers in one call, one behind the other: norm, attention, norm, feed-forward, with both residuals. Decoder
// layers attend over slots; those of CLIP's tower over an image's own patches.
//
// What each part computes, and with which bits, is what the part computes when it is called by itself; in between
// nothing goes back to Python, and what is only passed on lies in memory that the caller keeps.
// Legend: B rows, Q their left-padded length, C hidden size, Hq and H query and K/V heads, D head size.

#include <cstring>

#include "cpu_kernels.h"

struct Linear {
  const void *panels, *bias;  // bias: null, or in the panels' order
  int64_t columns;
};

struct Layer {
  int64_t hidden;  // C
  const void *norm_before, *norm_behind;
  double epsilon_before, epsilon_behind;
  Linear qkv, out, gated, down;
  double scaling;
  int64_t window;  // 0: none
};

struct ClipLayer {
  int64_t hidden;  // C
  const void *weight_before, *bias_before, *weight_behind, *bias_behind;
  double epsilon_before, epsilon_behind;
  Linear qkv, out, up, down;
};

namespace {

#define OF_TYPE(NAME, T)                                                                           \
  inline void product(const Product& p, const T* x, const Linear& by, const T* residual, T* out) { \
    product_##NAME(&p, x, static_cast<const uint32_t*>(by.panels), static_cast<const T*>(by.bias), \
                   residual, out);                                                                 \
  }                                                                                                \
  inline void rms_norm(const T* x, const void* weight, T* out, int64_t rows, int64_t dim,          \
                       double epsilon) {                                                           \
    rms_norm_##NAME(x, static_cast<const T*>(weight), out, rows, dim, epsilon);                    \
  }                                                                                                \
  inline void layer_norm(const T* x, const void* weight, const void* bias, T* out, int64_t rows,   \
                         int64_t dim, double epsilon) {                                            \
    layer_norm_##NAME(x, static_cast<const T*>(weight), static_cast<const T*>(bias), out, rows,    \
                      dim, epsilon);                                                               \
  }                                                                                                \
  inline void attend(const Attention& a, const T* q, const T* k, const T* v, T* out,               \
                     const Rows& rows) {                                                           \
    prefill_##NAME(&a, q, k, v, out, &rows);                                                       \
  }                                                                                                \
  inline void attend(const Attention& a, T* qkv, const T* cosine, const T* sine, T* k, T* v,       \
                     T* out, const Rows& rows) {                                                   \
    rope_store_##NAME(&a, qkv, cosine, sine, k, v, &rows);                                         \
    (a.length == 1 ? decode_##NAME : prefill_##NAME)(&a, qkv, k, v, out, &rows);                   \
  }

OF_TYPE(float32, float)
#ifdef __AVX512BF16__
OF_TYPE(bfloat16, bf16)
#endif

// x and out [B, Q, C], which may be one; a: the strides of keys and values (the others are set here), and as window what
// a row has room for: a layer's that is no narrower is none. memory: B * Q times C, Hq * D, and the more of the columns
// of qkv and gated.
template <typename T>
void layer(const Layer& l, Attention a, const T* x, const T* cosine, const T* sine, T* k, T* v,
           T* out, T* memory, const Rows& rows) {
  const int64_t tokens = a.batch * a.length, mixed_width = a.heads * a.dim;
  const int64_t qkv_width = l.qkv.columns;
  T* normed = memory;
  T* mixed = normed + tokens * l.hidden;
  T* wide = mixed + tokens * mixed_width;
  a.q_batch = a.length * qkv_width, a.q_head = a.dim, a.q_token = qkv_width;
  a.o_batch = a.length * mixed_width, a.o_head = a.dim, a.o_token = mixed_width;
  a.scaling = l.scaling, a.window = l.window < a.window ? l.window : 0;

  rms_norm(x, l.norm_before, normed, tokens, l.hidden, l.epsilon_before);
  product({tokens, l.hidden, qkv_width, kPlain}, normed, l.qkv, static_cast<const T*>(nullptr), wide);
  for (int64_t row = 0; row < a.batch; row++)  // padding is attended by nobody, and must be finite
    std::memset(mixed + row * a.o_batch, 0, sizeof(T) * mixed_width * (a.length - rows.count[row]));
  attend(a, wide, cosine, sine, k, v, mixed, rows);
  // Here and below each entry of the residual is read before its place is written, by the same thread.
  product({tokens, mixed_width, l.hidden, kPlain}, mixed, l.out, x, out);
  rms_norm(out, l.norm_behind, normed, tokens, l.hidden, l.epsilon_behind);
  product({tokens, l.hidden, l.gated.columns, kGated}, normed, l.gated, static_cast<const T*>(nullptr), wide);
  product({tokens, l.gated.columns, l.hidden, kPlain}, wide, l.down, out, out);
}

// x and out [B, Q, C], which may be one, of B images' Q patches; a: batch, heads, dim, length and scaling, the rest is set
// here. memory: B * Q times C, C, and the more of 3 C and the feed-forward's width.
template <typename T>
void clip_layer(const ClipLayer& l, Attention a, const T* x, T* out, T* memory, const Rows& rows) {
  const int64_t tokens = a.batch * a.length, hidden = l.hidden, width = l.qkv.columns;
  T* normed = memory;
  T* mixed = normed + tokens * hidden;
  T* wide = mixed + tokens * hidden;
  const T* none = nullptr;
  a.kv_heads = a.heads, a.causal = 0, a.window = 0;
  a.q_batch = a.k_slot = a.length * width, a.q_head = a.k_head = a.dim, a.q_token = a.k_token = width;
  a.o_batch = a.length * hidden, a.o_head = a.dim, a.o_token = hidden;

  layer_norm(x, l.weight_before, l.bias_before, normed, tokens, hidden, l.epsilon_before);
  product({tokens, hidden, width, kPlain}, normed, l.qkv, none, wide);
  attend(a, wide, wide + hidden, wide + 2 * hidden, mixed, rows);
  product({tokens, hidden, hidden, kPlain}, mixed, l.out, x, out);
  layer_norm(out, l.weight_behind, l.bias_behind, normed, tokens, hidden, l.epsilon_behind);
  product({tokens, hidden, l.up.columns, kQuickGelu}, normed, l.up, none, wide);
  product({tokens, l.up.columns, hidden, kPlain}, wide, l.down, out, out);
}

}  // namespace

#define KERNELS(NAME, T)                                                                          \
  void layers_##NAME(const Layer* l, int64_t count, const Attention* a, const T* x,               \
                     const T* cosine, const T* sine, T* const* k, T* const* v, T* out, T* memory, \
                     const Rows* rows) {                                                          \
    for (int64_t n = 0; n < count; n++)                                                           \
      layer(l[n], *a, n ? out : x, cosine, sine, k[n], v[n], out, memory, *rows);                 \
  }                                                                                               \
  void clip_layers_##NAME(const ClipLayer* l, int64_t count, const Attention* a, const T* x,      \
                          T* out, T* memory, const Rows* rows) {                                  \
    for (int64_t n = 0; n < count; n++) clip_layer(l[n], *a, n ? out : x, out, memory, *rows);    \
  }

extern "C" {
KERNELS(float32, float)
#ifdef __AVX512BF16__
KERNELS(bfloat16, bf16)
#endif
}
