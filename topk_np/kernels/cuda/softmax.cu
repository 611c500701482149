// softmax and softmax_vjp: row by row, one block a row.

// The sum, or largest, over a block's threads, for all of them.
template <typename T, bool LARGEST>
__device__ T combined(T own) {
  __shared__ T of_warp[MOST_WARPS];
  const int lane = lane_of_thread(), warps = warps_of_block();
  for (int step = WARP / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(ALL_LANES, own, step);
    own = !LARGEST ? own + other : other > own ? other : own;
  }
  __syncthreads();  // until the last use of the shared memory is over
  if (lane == 0) of_warp[warp_of_thread()] = own;
  __syncthreads();
  own = of_warp[0];
  for (int warp = 1; warp < warps; warp++) {
    const T other = of_warp[warp];
    own = !LARGEST ? own + other : other > own ? other : own;
  }
  return own;
}

// weights = exp(scores) / the row's sum of it; a row of nothing but -inf is all 0, one with a NaN all NaN.
template <typename T>
__global__ void __launch_bounds__(MOST_WARPS* WARP, 1)
    softmax(const T* __restrict__ scores, i64 rows, i64 columns, T* __restrict__ weights) {
  const T lowest = (T)__uint_as_float(0xff800000u);  // -inf
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* own = scores + row * columns;
    T largest = lowest;  // NaN is passed over here and met again in the sum
    for (i64 i = threadIdx.x; i < columns; i += blockDim.x)
      largest = own[i] > largest ? own[i] : largest;
    largest = combined<T, true>(largest);
    if (largest == lowest) largest = 0;
    T sum = 0;
    for (i64 i = threadIdx.x; i < columns; i += blockDim.x) sum += exp(own[i] - largest);
    sum = combined<T, false>(sum);
    if (sum == 0) sum = 1;
    for (i64 i = threadIdx.x; i < columns; i += blockDim.x)
      weights[row * columns + i] = exp(own[i] - largest) / sum;
  }
}

// dscores = weights * (dweights - the row's sum of weights * dweights).
template <typename T>
__global__ void __launch_bounds__(MOST_WARPS* WARP, 1)
    softmax_vjp(const T* __restrict__ weights, const T* __restrict__ dweights, i64 rows,
                i64 columns, T* __restrict__ dscores) {
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* own = weights + row * columns;
    const T* given = dweights + row * columns;
    T sum = 0;
    for (i64 i = threadIdx.x; i < columns; i += blockDim.x) sum += own[i] * given[i];
    sum = combined<T, false>(sum);
    for (i64 i = threadIdx.x; i < columns; i += blockDim.x)
      dscores[row * columns + i] = own[i] * (given[i] - sum);
  }
}
