// Drawing a token of each row at a given point of its distribution, without putting the row in order.
//
// What draw.py names by sorting: the likeliest token first, of equally likely ones the lower id, and the
// token under which the point falls. Here the masses are summed by bins of likelihood, and only the bin in
// which the point falls is put in order. Masses are doubles throughout; a point that lies within `kMargin` of a
// border between two tokens is left undecided, as are rows that are not finite.
// Legend: V vocabulary. Needs AVX-512. Compiled with the others into one library.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace {

constexpr int kBins = 4096;
constexpr double kMargin = 1e-9;
constexpr float kRange = 64.0f;  // what is less likely than the likeliest by e^-64 has one bin

// exp(x) of eight x <= 0: 2^n * exp(r), |r| <= ln2 / 2, by the Taylor series to degree 13.
inline __m512d exp8(__m512d x) {
  x = _mm512_max_pd(_mm512_set1_pd(-800.0), x);
  const __m512d n = _mm512_roundscale_pd(_mm512_mul_pd(x, _mm512_set1_pd(1.4426950408889634)), 8);
  __m512d r = _mm512_fnmadd_pd(n, _mm512_set1_pd(6.93147180369123816490e-01), x);
  r = _mm512_fnmadd_pd(n, _mm512_set1_pd(1.90821492927058770002e-10), r);
  double factor = 6227020800.0;  // 13!
  __m512d p = _mm512_set1_pd(1.0 / factor);
  for (int degree = 13; degree > 0; degree--) {
    factor /= degree;
    p = _mm512_fmadd_pd(p, r, _mm512_set1_pd(1.0 / factor));
  }
  return _mm512_scalef_pd(p, n);
}

inline __mmask16 mask(int64_t left) {
  return left >= 16 ? __mmask16(0xFFFF) : __mmask16((1u << left) - 1);
}

struct Found {
  int64_t token;
  double before, through;  // masses of all tokens before it, and with it
};

// One row's masses by bins of likelihood; kept by each thread for the next row.
struct Row {
  int64_t size = 0;
  float top = 0, step = 0;
  double whole = 0;
  const float* logits = nullptr;
  float temperature = 1;
  std::vector<double> masses;
  std::vector<uint16_t> bins;
  std::vector<double> sums = std::vector<double>(kBins);
  std::vector<std::pair<float, int64_t>> some;

  // False where a logit is not a number, or none is finite.
  bool take(const float* given, int64_t count, float heat) {
    logits = given, size = count, temperature = heat;
    masses.resize(count + 16);
    bins.resize(count + 16);
    const float low = range();
    if (!std::isfinite(top)) return false;
    step = kBins / std::max(std::min(top - low, kRange), 1e-30f);
    weigh();
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t j = 0; j < count; j++) sums[bins[j]] += masses[j];
    whole = 0;
    for (const double sum : sums) whole += sum;
    return true;
  }

  // Sets `top`, which is infinite where a logit is not a number; the least of all.
  float range() {
    const float infinity = std::numeric_limits<float>::infinity();
    const __m512 heat = _mm512_set1_ps(temperature);
    __m512 high = _mm512_set1_ps(-infinity), low = _mm512_set1_ps(infinity);
    __mmask16 unsound = 0;
    for (int64_t j = 0; j < size; j += 16) {
      const __mmask16 m = mask(size - j);
      const __m512 x = _mm512_div_ps(_mm512_maskz_loadu_ps(m, logits + j), heat);
      unsound |= _mm512_mask_cmp_ps_mask(m, x, x, _CMP_UNORD_Q);
      high = _mm512_mask_max_ps(high, m, high, x);
      low = _mm512_mask_min_ps(low, m, low, x);
    }
    top = unsound ? infinity : _mm512_reduce_max_ps(high);
    return _mm512_reduce_min_ps(low);
  }

  void weigh() {
    const __m512 heat = _mm512_set1_ps(temperature), highest = _mm512_set1_ps(top);
    const __m512 per = _mm512_set1_ps(step), last = _mm512_set1_ps(kBins - 1);
    const __m512d shift = _mm512_set1_pd(top);
    for (int64_t j = 0; j < size; j += 16) {
      const __m512 x = _mm512_div_ps(_mm512_maskz_loadu_ps(mask(size - j), logits + j), heat);
      const __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
      const __m512d b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
      _mm512_storeu_pd(masses.data() + j, exp8(_mm512_sub_pd(a, shift)));
      _mm512_storeu_pd(masses.data() + j + 8, exp8(_mm512_sub_pd(b, shift)));
      // Of two likelihoods the higher is never in the later bin: each step of this keeps their order.
      const __m512 place = _mm512_min_ps(_mm512_mul_ps(_mm512_sub_ps(highest, x), per), last);
      _mm256_storeu_si256((__m256i*)(bins.data() + j),
                          _mm512_cvtepi32_epi16(_mm512_cvttps_epi32(place)));
    }
  }

  // The first token, the likeliest first, with which the masses come to more than `target`.
  Found find(double target) {
    double before = 0;
    int bin = 0;
    while (bin < kBins - 1 && before + sums[bin] <= target) before += sums[bin++];
    some.clear();
    for (int64_t j = 0; j < size; j++)
      if (bins[j] == bin) some.emplace_back(logits[j] / temperature, j);
    std::sort(some.begin(), some.end(), [](const auto& a, const auto& b) {
      return a.first > b.first || (a.first == b.first && a.second < b.second);
    });
    for (const auto& [value, token] : some) {
      const double through = before + masses[token];
      if (through > target) return {token, before, through};
      before = through;
    }
    return {-1, before, before};
  }

  bool is_clear(const Found& found, double target) const {
    return found.token >= 0 && target - found.before > kMargin * whole &&
           found.through - target > kMargin * whole;
  }
};

thread_local Row row;

}  // namespace

// Tokens of `rows` rows of logits [rows, V], each at `point` of its distribution at `temperature`, of its
// tokens of the least set that has the mass `top_p`. -1 where that is not decided here.
extern "C" void draw(const float* logits, int64_t rows, int64_t size, const double* temperature,
                     const double* top_p, const double* point, int64_t* tokens) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t n = 0; n < rows; n++) {
    tokens[n] = -1;
    if (!row.take(logits + n * size, size, static_cast<float>(temperature[n]))) continue;
    double end = row.whole;
    if (top_p[n] < 1) {
      const double target = top_p[n] * row.whole;
      const Found last = row.find(target);
      if (!row.is_clear(last, target)) continue;
      end = last.through;
    }
    const double target = point[n] * end;
    const Found found = row.find(target);
    // Before the first token there is no border that the point might lie on the other side of.
    const bool is_first = found.before == 0 && found.through - target > kMargin * row.whole;
    if (is_first || row.is_clear(found, target)) tokens[n] = found.token;
  }
}
