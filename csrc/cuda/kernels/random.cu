// Philox4x32-10 (Salmon et al., 2011), and dropout, which numbers its draws by element: the same
// numbers as on the CPU.
#include "cuda/packs.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kThreads = 256;

// The block whose counter is (low, high).
__device__ Pack<uint32_t, 4> philox(uint64_t key, uint64_t low, uint64_t high) {
  constexpr uint64_t kMulA = 0xD2511F53, kMulB = 0xCD9E8D57;
  uint32_t c0 = uint32_t(low), c1 = uint32_t(low >> 32);
  uint32_t c2 = uint32_t(high), c3 = uint32_t(high >> 32);
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = kMulA * c0, b = kMulB * c2;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0;
    c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c3 = uint32_t(a);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

void random_words(const Exec& exec, int64_t blocks, const uint64_t* state, uint32_t* words) {
  const bool aligned = are_packs<uint32_t>(0, words);
  for_each(exec, blocks, [=] __device__(int64_t i) {
    const Pack<uint32_t, 4> block = philox(state[0], state[1] + uint64_t(i), state[2]);
    if (aligned) return store_pack(words + 4 * i, block);
#pragma unroll
    for (int j = 0; j < 4; ++j) words[4 * i + j] = block[j];
  });
}

// What dropout multiplies by: element i's draw is word i of the state's stream.
template <class A>
struct Mask {
  const uint64_t* state;
  uint32_t threshold;  // 2^32 does not fit: p = 1 is done by scale = 0
  A scale;

  Mask(double p, const uint64_t* at)
      : state(at),
        threshold(p < 1 ? uint32_t(p * 4294967296.0) : UINT32_MAX),
        scale(p < 1 ? A(1 / (1 - p)) : A(0)) {}
  __device__ Pack<uint32_t, 4> words(int64_t block) const {
    return philox(state[0], state[1] + uint64_t(block), 0);
  }
  __device__ A operator()(uint32_t word) const { return word < threshold ? A(0) : scale; }
};

// Four neighbouring elements of x (n, pixels, c) a thread, or what is left of them. They need one
// block of words, or where c is no multiple of 4 a few.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(int64_t size, int64_t c, Divider by_c, Divider by_pixels, Mask<Acc<T>> mask,
                   const T* x, T* y) {
  for (int64_t i = thread_index() * 4; i < size; i += thread_count() * 4) {
    int64_t n = i;
    int64_t channel = by_c.split(n);
    int64_t pixel = by_pixels.split(n);
    int64_t drawn = (n * c + channel) / 4;
    Pack<uint32_t, 4> words = mask.words(drawn);
    if constexpr (kWhole) {
      constexpr int W = kPack<T> < 4 ? kPack<T> : 4;
#pragma unroll
      for (int at = 0; at < 4; at += W) {
        Acc<T> v[W];
        load_values<W>(x + i + at, v);
#pragma unroll
        for (int j = 0; j < W; ++j) v[j] *= mask(words[at + j]);
        store_values<W>(y + i + at, v);
      }
    } else {
      for (int64_t at = i; at < size && at < i + 4; ++at) {
        const int64_t element = n * c + channel;
        if (element / 4 != drawn) words = mask.words(drawn = element / 4);
        const int word = int(element % 4);
        const uint32_t drawn_word =
            word < 2 ? (word < 1 ? words[0] : words[1]) : (word < 3 ? words[2] : words[3]);
        y[at] = T(Acc<T>(x[at]) * mask(drawn_word));
        if (++channel < c) continue;
        channel = 0;
        if (++pixel < by_pixels.d) continue;
        pixel = 0;
        ++n;
      }
    }
  }
}

template <class T>
void dropout(const Exec& exec, int64_t n, int64_t pixels, int64_t c, double p,
             const uint64_t* state, const T* x, T* y) {
  const int64_t size = n * pixels * c;
  if (size == 0) return;
  const auto run = [&](auto kernel) {
    launch(exec, kernel, grid_for(ceil_div(size, 4), kThreads), dim3(kThreads), 0, size, c,
           Divider(c), Divider(pixels), Mask<Acc<T>>(p, state), x, y);
  };
  if (c % 4 == 0 && are_packs<T>(0, x, y)) return run(dropout_kernel<T, true>);
  run(dropout_kernel<T, false>);
}

template <class T>
void add(Ops<T>& table) {
  table.dropout = dropout<T>;
  table.random_words = random_words;
}

}  // namespace

CONVGRAD_STEM(random)

}  // namespace convgrad::cuda
