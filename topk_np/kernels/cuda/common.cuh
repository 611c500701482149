// What the kernels share: number formats, and how threads divide elements and meet.
//
// Arrays are stacks of heads, and one launch serves all heads of a stack. Sizes and strides count elements
// and are 64 bits wide, as CuPy passes Python's integers. An operand that comes with strides, of heads, rows
// and columns, may lie in memory in any way: heads that share it have a stride of 0. The others are
// contiguous. Every kernel strides over its work, so that any grid will do.

using i64 = long long;

constexpr int WARP = 32;
constexpr int MOST_WARPS = 16;  // of a block that has a row
constexpr unsigned ALL_LANES = 0xffffffffu;

// Numbers of half precision are stored, never computed with.
struct Float16 {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

template <typename T>
struct Format;
template <>
struct Format<Float16> {
  using Bits = unsigned short;
  static constexpr Bits INF = 0x7c00;
};
template <>
struct Format<BFloat16> {
  using Bits = unsigned short;
  static constexpr Bits INF = 0x7f80;
};
template <>
struct Format<float> {
  using Bits = unsigned int;
  static constexpr Bits INF = 0x7f800000u;
};
template <>
struct Format<double> {
  using Bits = unsigned long long;
  static constexpr Bits INF = 0x7ff0000000000000ull;
};

__device__ inline float widen(float number) { return number; }
__device__ inline double widen(double number) { return number; }
__device__ inline float widen(BFloat16 number) {
  return __uint_as_float((unsigned)number.bits << 16);
}
__device__ inline float widen(Float16 number) {
  const unsigned sign = (number.bits & 0x8000u) << 16;
  const unsigned exponent = (number.bits >> 10) & 31u, fraction = number.bits & 1023u;
  if (exponent == 0) {  // zero or subnormal: multiples of 2^-24
    const float size = (float)fraction * 5.9604644775390625e-8f;
    return sign ? -size : size;
  }
  return __uint_as_float(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}

// The first of the elements that fall to this thread, and how far it is to the next.
__device__ inline i64 first_element() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline i64 next_element() { return (i64)gridDim.x * blockDim.x; }

__device__ inline int lane_of_thread() { return threadIdx.x % WARP; }
__device__ inline int warp_of_thread() { return threadIdx.x / WARP; }
__device__ inline int warps_of_block() { return blockDim.x / WARP; }

// The slots of a row that are in use: unused ones, which hold -1, come last. Usually there are none.
__device__ inline i64 used_slots(const int* indices, i64 k) {
  if (k == 0 || indices[k - 1] >= 0) return k;
  i64 low = 0, high = k - 1;
  while (low < high) {
    const i64 middle = (low + high) / 2;
    if (indices[middle] < 0)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}
