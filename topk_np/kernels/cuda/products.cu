// Products with a stack of row-sparse matrices (heads, rows, keys) that have at most k entries in a row: weights
// and indices (heads, rows, k). What is not in use is not read: 0 times NaN would be NaN.

// gather_matmul: out (heads, rows, width) = the sum over slots of weights[head, i, slot] times the row of
// values that the index names. One thread an element, so that neighbours read neighbouring values.
template <typename T, typename Stored>
__global__ void gather_matmul(const T* __restrict__ weights, const int* __restrict__ indices,
                              const Stored* __restrict__ values, i64 value_head, i64 value_row,
                              i64 value_column, i64 heads, i64 rows, i64 k, i64 width,
                              T* __restrict__ out) {
  for (i64 i = first_element(); i < heads * rows * width; i += next_element()) {
    const i64 row = i / width, first = row * k, end = first + used_slots(indices + first, k);
    const Stored* column = values + row / rows * value_head + (i - row * width) * value_column;
    T sum = 0;
#pragma unroll 4
    for (i64 slot = first; slot < end; slot++)
      sum += weights[slot] * widen(column[indices[slot] * value_row]);
    out[i] = sum;
  }
}

// sampled_matmul: out (heads, rows, k) = the row of `left` (heads, rows, width) times the row of values that
// each index names, 0 in unused slots. One warp a slot.
template <typename T, typename Stored>
__global__ void sampled_matmul(const T* __restrict__ left, i64 left_head, i64 left_row,
                               i64 left_column, const Stored* __restrict__ values, i64 value_head,
                               i64 value_row, i64 value_column, const int* __restrict__ indices,
                               i64 heads, i64 rows, i64 k, i64 width, T* __restrict__ out) {
  const int lane = lane_of_thread();
  for (i64 i = first_element() / WARP; i < heads * rows * k; i += next_element() / WARP) {
    T sum = 0;
    if (indices[i] >= 0) {
      const i64 row = i / k, head = row / rows;
      const T* own = left + head * left_head + (row - head * rows) * left_row;
      const Stored* value = values + head * value_head + indices[i] * value_row;
      for (i64 column = lane; column < width; column += WARP)
        sum += own[column * left_column] * widen(value[column * value_column]);
    }
    for (int step = WARP / 2; step > 0; step /= 2)
      sum += __shfl_down_sync(ALL_LANES, sum, step);
    if (lane == 0) out[i] = sum;
  }
}

// scatter_matmul: out (heads, size, width), for the columns `first` to first + size of the row-sparse matrices,
// plus weights[head, i, slot] times the row i of `right` in the row of each index; without reading `out` if it
// is fresh. `order` sorts the pairs of all heads, by head and by index in it, so that unused ones (-1) are the
// first of their head. One thread an element: it finds its index by bisection and sums in the order of rows,
// so that the result is the same every time.
template <typename T>
__global__ void scatter_matmul(const T* __restrict__ weights, const int* __restrict__ indices,
                               const i64* __restrict__ order, const T* __restrict__ right,
                               i64 right_head, i64 right_row, i64 right_column, i64 heads,
                               i64 rows, i64 k, i64 width, i64 first, i64 size, i64 fresh,
                               T* __restrict__ out, i64 out_head, i64 out_row, i64 out_column) {
  const i64 pairs = rows * k;  // of a head
  for (i64 i = first_element(); i < heads * size * width; i += next_element()) {
    const i64 place = i / width, column = i - place * width, head = place / size;
    const i64 row = place - head * size, end = (head + 1) * pairs;
    const int index = (int)(first + row);
    i64 low = head * pairs, high = end;  // the first place that is not less lies between
    while (low < high) {
      const i64 middle = (low + high) / 2;
      if (indices[order[middle]] < index)
        low = middle + 1;
      else
        high = middle;
    }
    const bool found = low < end && indices[order[low]] == index;
    const T* own = right + head * right_head + column * right_column;
    T sum = 0;
    for (; low < end && indices[order[low]] == index; low++) {
      const i64 pair = order[low];
      sum += weights[pair] * own[(pair / k - head * rows) * right_row];
    }
    T* total = out + head * out_head + row * out_row + column * out_column;
    if (fresh)
      *total = sum;
    else if (found)
      *total += sum;
  }
}

// The same by atomic additions, in whatever order threads come: nothing to sort, but results vary.
template <typename T>
__global__ void scatter_matmul_atomic(const T* __restrict__ weights,
                                      const int* __restrict__ indices,
                                      const T* __restrict__ right, i64 right_head, i64 right_row,
                                      i64 right_column, i64 heads, i64 rows, i64 k, i64 width,
                                      i64 first, i64 size, T* __restrict__ out, i64 out_head,
                                      i64 out_row, i64 out_column) {
  for (i64 i = first_element(); i < heads * rows * k * width; i += next_element()) {
    const i64 pair = i / width, column = i - pair * width, index = indices[pair];
    if (index < 0 || index < first || index >= first + size) continue;
    const i64 row = pair / k, head = row / rows;
    const T* own = right + head * right_head + (row - head * rows) * right_row;
    atomicAdd(&out[head * out_head + (index - first) * out_row + column * out_column],
              weights[pair] * own[column * right_column]);
  }
}

// take_slots: out (heads, rows, k) = matrix[head, i, place - kept] for each of `places` (heads, rows, k), but of
// the first `kept` places what is in `before` (heads, rows, kept), and 0 where a place is -1. Bits are moved
// as they are.
template <typename Bits>
__global__ void take_slots(const Bits* __restrict__ matrix, i64 head_stride, i64 row_stride,
                           i64 column_stride, const int* __restrict__ places, i64 heads, i64 rows,
                           i64 k, const Bits* __restrict__ before, i64 kept,
                           Bits* __restrict__ out) {
  for (i64 i = first_element(); i < heads * rows * k; i += next_element()) {
    const i64 row = i / k, head = row / rows, place = places[i];
    const Bits* own = matrix + head * head_stride + (row - head * rows) * row_stride;
    Bits bits = 0;
    if (place >= kept)
      bits = own[(place - kept) * column_stride];
    else if (place >= 0)
      bits = before[row * kept + place];
    out[i] = bits;
  }
}

// add_slots: out (heads, rows, keys) plus the row-sparse matrices themselves, which have an index once in a row.
template <typename T>
__global__ void add_slots(const T* __restrict__ weights, const int* __restrict__ indices, i64 heads,
                          i64 rows, i64 k, T* __restrict__ out, i64 out_head, i64 out_row,
                          i64 out_column) {
  for (i64 i = first_element(); i < heads * rows * k; i += next_element()) {
    const i64 row = i / k, head = row / rows;
    if (indices[i] >= 0)
      out[head * out_head + (row - head * rows) * out_row + indices[i] * out_column] += weights[i];
  }
}

// masked_matmul: `out` (heads, rows, width) holds weights @ values, where weights are 0 at pairs whose score is
// -inf. So an element is as it should be if it is finite, and else summed anew over the other pairs alone.
template <typename T>
__global__ void masked_matmul(const T* __restrict__ weights, i64 weight_head, i64 weight_row,
                              i64 weight_column, const T* __restrict__ scores, i64 score_head,
                              i64 score_row, i64 score_column, const T* __restrict__ values,
                              i64 value_head, i64 value_row, i64 value_column, i64 heads, i64 rows,
                              i64 columns, i64 width, T* __restrict__ out) {
  const T infinite = (T)__uint_as_float(0x7f800000u);
  for (i64 i = first_element(); i < heads * rows * width; i += next_element()) {
    if (out[i] < infinite && out[i] > -infinite) continue;
    const i64 place = i / width, head = place / rows, row = place - head * rows;
    const T* weight = weights + head * weight_head + row * weight_row;
    const T* score = scores + head * score_head + row * score_row;
    const T* value = values + head * value_head + (i - place * width) * value_column;
    T sum = 0;
    for (i64 column = 0; column < columns; column++)
      if (score[column * score_column] != -infinite)
        sum += weight[column * weight_column] * value[column * value_row];
    out[i] = sum;
  }
}
