// Philox4x32-10 (Salmon et al., 2011), and dropout, which numbers its draws by element.
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

constexpr int kBlocks = 16;  // generated together, so that the compiler uses vectors
constexpr int kWords = 4 * kBlocks;
constexpr uint32_t kMulA = 0xD2511F53, kMulB = 0xCD9E8D57;

// words[4 j + i] = word i of the block whose counter is first + j, upper half `high`.
void philox(uint64_t key, uint64_t first, uint64_t high, uint32_t words[kWords]) {
  uint32_t c[4][kBlocks];
  for (int j = 0; j < kBlocks; ++j) {
    c[0][j] = static_cast<uint32_t>(first + static_cast<uint64_t>(j));
    c[1][j] = static_cast<uint32_t>((first + static_cast<uint64_t>(j)) >> 32);
    c[2][j] = static_cast<uint32_t>(high);
    c[3][j] = static_cast<uint32_t>(high >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    // One loop per product half: gcc has vector instructions for each, not for all at once.
    uint32_t a_low[kBlocks], a_high[kBlocks], b_low[kBlocks], b_high[kBlocks];
    for (int j = 0; j < kBlocks; ++j) a_low[j] = kMulA * c[0][j];
    for (int j = 0; j < kBlocks; ++j) a_high[j] = (uint64_t{kMulA} * c[0][j]) >> 32;
    for (int j = 0; j < kBlocks; ++j) b_low[j] = kMulB * c[2][j];
    for (int j = 0; j < kBlocks; ++j) b_high[j] = (uint64_t{kMulB} * c[2][j]) >> 32;
    for (int j = 0; j < kBlocks; ++j) {
      c[0][j] = b_high[j] ^ c[1][j] ^ k0;
      c[1][j] = b_low[j];
      c[2][j] = a_high[j] ^ c[3][j] ^ k1;
      c[3][j] = a_low[j];
    }
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  for (int j = 0; j < kBlocks; ++j)
    for (int i = 0; i < 4; ++i) words[4 * j + i] = c[i][j];
}

void random_words(const Exec&, int64_t blocks, const uint64_t* state, uint32_t* out) {
  uint32_t words[kWords];
  for (int64_t first = 0; first < blocks; first += kBlocks) {
    philox(state[0], state[1] + static_cast<uint64_t>(first), state[2], words);
    const int64_t n = 4 * min_of(kBlocks, blocks - first);
    for (int64_t i = 0; i < n; ++i) out[4 * first + i] = words[i];
  }
}

// What dropout multiplies by: element i's draw is word i of the state's stream.
template <class T>
struct Mask {
  const uint64_t* state;
  uint32_t threshold;  // 2^32 does not fit: p = 1 is done by scale = 0
  T scale;

  Mask(double p, const uint64_t* state)
      : state(state),
        threshold(p < 1 ? static_cast<uint32_t>(p * 4294967296.0) : UINT32_MAX),
        scale(p < 1 ? static_cast<T>(1 / (1 - p)) : T(0)) {}

  // m[i - first] for elements [first, first + n), first a multiple of 4, n <= kWords.
  void fill(int64_t first, int64_t n, T* m) const {
    uint32_t words[kWords];
    philox(state[0], state[1] + static_cast<uint64_t>(first) / 4, 0, words);
    for (int64_t i = 0; i < n; ++i) m[i] = words[i] < threshold ? T(0) : scale;
  }
};

template <class T>
void drop_elements(const Exec& exec, int64_t n, const Mask<T>& mask, const T* x, T* y) {
  parallel_for(exec, ceil_div(n, kGrain), 4 * n, [&](int64_t item, int) {
    T m[kWords];
    const int64_t end = min_of(n, (item + 1) * kGrain);
    for (int64_t first = item * kGrain; first < end; first += kWords) {
      const int64_t count = min_of(kWords, end - first);
      mask.fill(first, count, m);
      for (int64_t i = 0; i < count; ++i) y[first + i] = x[first + i] * m[i];
    }
  });
}

// Whole channels: the mask is drawn anew for each sample and each few channels of it.
template <class T>
void drop_channels(const Exec& exec, int64_t n, int64_t pixels, int64_t c, const Mask<T>& mask,
                   const T* x, T* y) {
  const int64_t step = kWords - 4, groups = ceil_div(c, step);  // room to start at a whole block
  parallel_for(exec, n * groups, n * pixels * c, [&](int64_t item, int) {
    const int64_t sample = item / groups, first = item % groups * step;
    const int64_t count = min_of(step, c - first), skip = (sample * c + first) % 4;
    T m[kWords];
    mask.fill(sample * c + first - skip, count + skip, m);
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const int64_t at = (sample * pixels + pixel) * c + first;
      for (int64_t i = 0; i < count; ++i) y[at + i] = x[at + i] * m[skip + i];
    }
  });
}

template <class T>
void dropout(const Exec& exec, int64_t n, int64_t pixels, int64_t c, double p,
             const uint64_t* state, const T* x, T* y) {
  const Mask<T> mask(p, state);
  if (pixels == 1) return drop_elements(exec, n * c, mask, x, y);
  drop_channels(exec, n, pixels, c, mask, x, y);
}

template <class T>
void add(Ops<T>& table) {
  table.dropout = dropout<T>;
  table.random_words = random_words;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_random(Ops<float>& table) { add(table); }
void add_random(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
