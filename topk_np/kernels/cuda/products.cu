// Products with a matrix (rows, columns) that has at most k entries in a row: weights and indices (rows, k)
// and how many slots of each row are in use. What is not in use is not read: 0 times NaN would be NaN.

// gather_matmul: out (rows, width) = the sum over slots of weights[i, slot] * values[indices[i, slot]].
// One thread an element, so that neighbours read neighbouring values.
template <typename T, typename Stored>
__global__ void gather_matmul(const T* __restrict__ weights, const int* __restrict__ indices,
                              const int* __restrict__ counts, const Stored* __restrict__ values,
                              i64 value_stride, i64 column_stride, i64 rows, i64 k, i64 width,
                              T* __restrict__ out) {
  for (i64 i = first_element(); i < rows * width; i += next_element()) {
    const i64 row = i / width;
    const Stored* column = values + (i - row * width) * column_stride;
    T sum = 0;
#pragma unroll 4
    for (i64 slot = row * k; slot < row * k + counts[row]; slot++)
      sum += weights[slot] * widen(column[indices[slot] * value_stride]);
    out[i] = sum;
  }
}

// sampled_matmul: out (rows, k) = left[i] . values[indices[i, slot]], 0 in unused slots. One warp a slot.
template <typename T, typename Stored>
__global__ void sampled_matmul(const T* __restrict__ left, const Stored* __restrict__ values,
                               i64 value_stride, i64 column_stride,
                               const int* __restrict__ indices, const int* __restrict__ counts,
                               i64 rows, i64 k, i64 width, T* __restrict__ out) {
  const int lane = lane_of_thread();
  for (i64 i = first_element() / WARP; i < rows * k; i += next_element() / WARP) {
    const i64 row = i / k;
    T sum = 0;
    if (i - row * k < counts[row]) {
      const Stored* value = values + indices[i] * value_stride;
      for (i64 column = lane; column < width; column += WARP)
        sum += left[row * width + column] * widen(value[column * column_stride]);
    }
    for (int step = WARP / 2; step > 0; step /= 2)
      sum += __shfl_down_sync(ALL_LANES, sum, step);
    if (lane == 0) out[i] = sum;
  }
}

// scatter_matmul: out (size, width), for the columns `first` to first + size of the row-sparse matrix, plus
// weights[i, slot] * right[i] in the row of each index. `order` sorts the indices, unused ones (-1) first.
// One thread an element: it finds its index by bisection and sums in the order of rows, so that the result
// is the same every time.
template <typename T>
__global__ void scatter_matmul(const T* __restrict__ weights, const int* __restrict__ indices,
                               const i64* __restrict__ order, const T* __restrict__ right,
                               i64 pairs, i64 k, i64 width, i64 first, i64 size,
                               T* __restrict__ out, i64 row_stride, i64 column_stride) {
  for (i64 i = first_element(); i < size * width; i += next_element()) {
    const i64 row = i / width, column = i - row * width;
    const int index = (int)(first + row);
    i64 low = 0, high = pairs;  // the first place that is not less lies between
    while (low < high) {
      const i64 middle = (low + high) / 2;
      if (indices[order[middle]] < index)
        low = middle + 1;
      else
        high = middle;
    }
    if (low == pairs || indices[order[low]] != index) continue;
    T sum = 0;
    for (; low < pairs && indices[order[low]] == index; low++) {
      const unsigned pair = (unsigned)order[low];  // of 2^32 pairs the order alone takes 32 GiB
      sum += weights[pair] * right[pair / (unsigned)k * width + column];
    }
    out[row * row_stride + column * column_stride] += sum;
  }
}

// The same by atomic additions, in whatever order threads come: nothing to sort, but results vary.
template <typename T>
__global__ void scatter_matmul_atomic(const T* __restrict__ weights,
                                      const int* __restrict__ indices,
                                      const T* __restrict__ right, i64 pairs, i64 k, i64 width,
                                      i64 first, i64 size, T* __restrict__ out, i64 row_stride,
                                      i64 column_stride) {
  for (i64 i = first_element(); i < pairs * width; i += next_element()) {
    const i64 pair = i / width, column = i - pair * width;
    const i64 row = indices[pair] - first;
    if (indices[pair] >= 0 && row >= 0 && row < size)
      atomicAdd(&out[row * row_stride + column * column_stride],
                weights[pair] * right[pair / k * width + column]);
  }
}

// take_slots: out (rows, k) = matrix[i, indices[i, slot]], 0 where an index is -1. Bits are moved as they are.
template <typename Bits>
__global__ void take_slots(const Bits* __restrict__ matrix, i64 row_stride, i64 column_stride,
                           const int* __restrict__ indices, i64 rows, i64 k,
                           Bits* __restrict__ out) {
  for (i64 i = first_element(); i < rows * k; i += next_element())
    out[i] = indices[i] < 0 ? 0 : matrix[i / k * row_stride + indices[i] * column_stride];
}

// add_slots: out (rows, columns) plus the row-sparse matrix itself, which has an index once in a row.
template <typename T>
__global__ void add_slots(const T* __restrict__ weights, const int* __restrict__ indices,
                          const int* __restrict__ counts, i64 rows, i64 k, T* __restrict__ out,
                          i64 row_stride, i64 column_stride) {
  for (i64 i = first_element(); i < rows * k; i += next_element()) {
    const i64 row = i / k;
    if (i - row * k < counts[row])
      out[row * row_stride + indices[i] * column_stride] += weights[i];
  }
}

// masked_matmul: `out` (rows, width) holds weights @ values, where weights are 0 at pairs that are not allowed.
// That is all, unless `finite` says that values hold a NaN or inf: then allowed pairs alone are summed anew.
template <typename T>
__global__ void masked_matmul(const bool* __restrict__ finite, const T* __restrict__ weights,
                              i64 weight_row, i64 weight_column,
                              const bool* __restrict__ allowed, i64 allowed_row,
                              i64 allowed_column, const T* __restrict__ values, i64 value_row,
                              i64 value_column, i64 rows, i64 columns, i64 width,
                              T* __restrict__ out) {
  if (*finite) return;
  for (i64 i = first_element(); i < rows * width; i += next_element()) {
    const i64 row = i / width;
    const T* value = values + (i - row * width) * value_column;
    T sum = 0;
    for (i64 column = 0; column < columns; column++)
      if (allowed[row * allowed_row + column * allowed_column])
        sum += weights[row * weight_row + column * weight_column] * value[column * value_row];
    out[i] = sum;
  }
}
