// Products of a linear layer on packed weights, with what follows done while the sums are in registers.
//
// Every entry is the sum of its products in the order of the inner dimension, whatever the number of rows,
// of threads and the row's place: the bits of a row do not tell who was beside it. (oneDNN's do for some shapes.)
//
// A weight [N, C] lies in panels of 64 columns: panel p, word w, column c is
// w * 64 + c behind panel p's first word; a word is a float32 or a pair of bfloat16 of neighbouring C. What is
// behind N is zero. A gated weight has 32 columns of the gate and the same 32 of the factor in each panel.
//
// The bound for many rows is the multiply-adds: 6 x 64 sums in registers, a panel read by all rows of a chunk, both from
// the second-level cache where C is a few thousand. For few rows it is reading the weight, so the next
// panel is asked for while this one is computed. Panels are given out one by one: a thread that loses its core to
// others holds up one of them.
// Legend: M rows, C inner size, N columns. Needs AVX-512; C even in bfloat16.

#include <omp.h>

#include <atomic>

#include "cpu_vectors.h"

namespace {

constexpr int kRows = 6;        // rows of one register block: 6 x 4 sums
constexpr int kColumns = 64;    // columns of a panel
constexpr int kLines = 4;       // cache lines of a panel's word
constexpr int64_t kFewest = 8 * kRows;       // rows of a chunk at least
constexpr int64_t kChunkBytes = 512 * 1024;  // of a longer one: half of a second-level cache of today

// Unrolled, so that no sum leaves its register.
#define EACH_SUM(ROWS, PARTS)                                  \
  _Pragma("GCC unroll 6") for (int i = 0; i < (ROWS); i++)     \
  _Pragma("GCC unroll 4") for (int part = 0; part < (PARTS); part++)

// What the register blocks of one panel have in common.
template <typename T>
struct Panel {
  const uint32_t* weight;
  const T* bias;       // of this panel's 64 columns, or null
  int64_t words;       // C as words
  int64_t first, left; // the result's first column here, and how many there are from it on
};

// The next panel's lines that a block asks for while it goes through its words.
struct Ahead {
  const char* from;
  int64_t lines;
};

// N rows' finished sums: bias, form and residual while they are in registers. Rounded before the quick-GELU and before the
// residual, as transformers does; what is gated is rounded once.
template <typename T, int N>
inline __attribute__((always_inline)) void finish(const Product& p, const Panel<T>& panel,
                                                  __m512 (&sum)[N][4], const T* residual, T* out,
                                                  int64_t row) {
  if (panel.bias)
    EACH_SUM(N, 4) sum[i][part] = _mm512_add_ps(sum[i][part], load16(panel.bias + 16 * part));
  if (p.form == kGated)
    EACH_SUM(N, 2)
      sum[i][part] = _mm512_mul_ps(_mm512_mul_ps(sum[i][part], sigmoid<T>(sum[i][part])), sum[i][part + 2]);
  if (p.form == kQuickGelu)
    EACH_SUM(N, 4) {
      const __m512 v = round_as(out, sum[i][part]);
      sum[i][part] = _mm512_mul_ps(v, sigmoid<T>(_mm512_mul_ps(v, _mm512_set1_ps(1.702f))));
    }
  const int64_t place = row * p.columns + panel.first;
  __mmask16 mask[4];
  for (int part = 0; part < 4; part++)
    mask[part] = p.form == kGated && part > 1 ? 0 : head_mask(panel.left - 16 * part);
  if (residual)
    EACH_SUM(N, 4) {
      const __m512 other = load16(residual + place + i * p.columns + 16 * part, mask[part]);
      sum[i][part] = _mm512_add_ps(round_as(out, sum[i][part]), other);
    }
  EACH_SUM(N, 4) store16(out + place + i * p.columns + 16 * part, sum[i][part], mask[part]);
}

// Most lines of N rows of a result, and of what is added to it: into the first-level cache, for when they are finished.
// Inlined, for a function that only asks is one without effect to the compiler.
template <typename T, int N>
inline __attribute__((always_inline)) void ask_for_result(const Product& p, const Panel<T>& panel,
                                                         const T* residual, const T* out, int64_t row) {
  const int64_t width = p.form == kGated ? kColumns / 2 : kColumns, line = 64 / sizeof(T);
  for (int i = 0; i < N; i++)
    for (int64_t column = 0; column < width; column += line) {
      const int64_t place = (row + i) * p.columns + panel.first + column;
      if (residual) __builtin_prefetch(residual + place);
      __builtin_prefetch(out + place, 1);
    }
}

// N rows from `row` on by one panel.
template <typename T, int N>
void block(const Product& p, const Panel<T>& panel, const T* x, const T* residual, T* out, int64_t row,
           Ahead ahead) {
  ask_for_result<T, N>(p, panel, residual, out, row);
  const uint32_t* in[N];
  for (int i = 0; i < N; i++) in[i] = reinterpret_cast<const uint32_t*>(x + (row + i) * p.inner);
  __m512 sum[N][4];
  for (auto& of_row : sum)
    for (auto& part : of_row) part = _mm512_setzero_ps();
  const char* next = ahead.from;
  int64_t due = 0;  // lines that should have been asked for by now, times the words
  for (int64_t w = 0; w < panel.words; w++) {
    const uint32_t* at = panel.weight + w * kColumns;
    const __m512i b0 = _mm512_loadu_si512(at), b1 = _mm512_loadu_si512(at + 16);
    const __m512i b2 = _mm512_loadu_si512(at + 32), b3 = _mm512_loadu_si512(at + 48);
    for (due += ahead.lines; due > 0; due -= panel.words, next += 64) _mm_prefetch(next, _MM_HINT_T1);
#pragma GCC unroll 6
    for (int i = 0; i < N; i++) {
      sum[i][0] = Word<T>::fma(sum[i][0], in[i] + w, b0);
      sum[i][1] = Word<T>::fma(sum[i][1], in[i] + w, b1);
      sum[i][2] = Word<T>::fma(sum[i][2], in[i] + w, b2);
      sum[i][3] = Word<T>::fma(sum[i][3], in[i] + w, b3);
    }
  }
  finish<T, N>(p, panel, sum, residual, out, row);
}

template <typename T>
void block_of(int64_t rows, const Product& p, const Panel<T>& panel, const T* x, const T* residual,
              T* out, int64_t row, Ahead ahead) {
  switch (rows) {
    case 1: return block<T, 1>(p, panel, x, residual, out, row, ahead);
    case 2: return block<T, 2>(p, panel, x, residual, out, row, ahead);
    case 3: return block<T, 3>(p, panel, x, residual, out, row, ahead);
    case 4: return block<T, 4>(p, panel, x, residual, out, row, ahead);
    case 5: return block<T, 5>(p, panel, x, residual, out, row, ahead);
    default: return block<T, kRows>(p, panel, x, residual, out, row, ahead);
  }
}

// Rows [from, to) by one panel, in blocks as even as can be: a block of one row is over before the lines that it asks
// for are there. The first blocks ask for the next panel.
template <typename T>
void by_panel(const Product& p, const Panel<T>& panel, const uint32_t* next, const T* x,
              const T* residual, T* out, int64_t from, int64_t to) {
  const int64_t rows = to - from, blocks = (rows + kRows - 1) / kRows;
  const int64_t askers = std::min<int64_t>(blocks, kLines), lines = kLines * panel.words;
  for (int64_t number = 0; number < blocks; number++) {
    const int64_t row = from + rows * number / blocks, end = from + rows * (number + 1) / blocks;
    Ahead ahead{nullptr, 0};
    if (next && number < askers) {
      const int64_t begin = lines * number / askers;
      ahead.from = reinterpret_cast<const char*>(next) + 64 * begin;
      ahead.lines = lines * (number + 1) / askers - begin;
    }
    block_of(end - row, p, panel, x, residual, out, row, ahead);
  }
}

// Tasks [0, count) given out one by one: to each thread its own share in order, then what is left of the others'.
class Tasks {
 public:
  explicit Tasks(int64_t count)
      : count_(count), shares_(std::min<int64_t>(omp_get_max_threads(), kMost)) {
    for (int64_t n = 0; n < shares_; n++) next_[n].at = begin(n);
  }
  // `count` where none is left.
  int64_t take(int64_t thread) {
    for (int64_t n = 0; n < shares_; n++) {
      const int64_t share = (thread + n) % shares_;
      if (next_[share].at >= begin(share + 1)) continue;
      const int64_t task = next_[share].at++;
      if (task < begin(share + 1)) return task;
    }
    return count_;
  }
  // What a thread will probably take next, or `count`.
  int64_t peek(int64_t thread) const {
    const int64_t share = thread % shares_, task = next_[share].at;
    return task < begin(share + 1) ? task : count_;
  }

 private:
  static constexpr int64_t kMost = 64;
  struct alignas(64) Next {
    std::atomic<int64_t> at;
  };
  int64_t begin(int64_t share) const { return count_ * share / shares_; }
  const int64_t count_, shares_;
  Next next_[kMost];
};

template <typename T>
void product(const Product& p, const T* x, const uint32_t* weight, const T* bias, const T* residual,
             T* out) {
  const int64_t words = p.inner / Word<T>::kPer, width = p.form == kGated ? kColumns / 2 : kColumns;
  const int64_t panels = (p.columns + width - 1) / width, size = words * kColumns;
  const int64_t most = std::max<int64_t>(kFewest, kChunkBytes / (p.inner * sizeof(T)));
  const int64_t shares = std::max<int64_t>(
      (p.rows + most - 1) / most, std::min<int64_t>(omp_get_max_threads(), p.rows / kFewest));
  const int64_t share = shares ? (p.rows + shares - 1) / shares : 0;
  const int64_t step = (share + kRows - 1) / kRows * kRows;
  const int64_t chunks = step ? (p.rows + step - 1) / step : 0;
  Tasks given(chunks * panels);
#pragma omp parallel
  {
    const int64_t thread = omp_get_thread_num();
    for (int64_t task; (task = given.take(thread)) < chunks * panels;) {
      const int64_t number = task % panels, from = task / panels * step, next = given.peek(thread);
      const Panel<T> panel{weight + number * size, bias ? bias + number * kColumns : nullptr, words,
                           number * width, p.columns - number * width};
      by_panel(p, panel, next < chunks * panels ? weight + next % panels * size : nullptr, x, residual,
               out, from, std::min(p.rows, from + step));
    }
  }
}

}  // namespace

extern "C" {
void product_float32(const Product* p, const float* x, const uint32_t* weight, const float* bias,
                     const float* residual, float* out) {
  product(*p, x, weight, bias, residual, out);
}
#ifdef __AVX512BF16__
void product_bfloat16(const Product* p, const bf16* x, const uint32_t* weight, const bf16* bias,
                      const bf16* residual, bf16* out) {
  product(*p, x, weight, bias, residual, out);
}
#endif
}
