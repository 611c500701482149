// hide_outside: scores (heads, rows, columns), set to -inf where row i of its head has not
// first + i <= column <= last + i.
//
// One block a row, which writes what it hides and reads nothing. `edges` (2, heads) has `first` and `last` of
// each head; if it is null, these are the same for all.

template <typename T>
__global__ void __launch_bounds__(MOST_WARPS* WARP, 1)
    hide_outside(T* __restrict__ scores, i64 heads, i64 rows, i64 columns,
                 const i64* __restrict__ edges, i64 first, i64 last) {
  const T hidden = (T)__uint_as_float(0xff800000u);  // -inf
  for (i64 row = blockIdx.x; row < heads * rows; row += gridDim.x) {
    const i64 head = row / rows, i = row - head * rows;
    if (edges) {
      first = edges[head];
      last = edges[heads + head];
    }
    const i64 begin = min(columns, max(i64(0), first + i));
    const i64 end = max(begin, min(columns, last + i + 1));
    T* own = scores + row * columns;
    for (i64 column = threadIdx.x; column < begin; column += blockDim.x) own[column] = hidden;
    for (i64 column = end + threadIdx.x; column < columns; column += blockDim.x)
      own[column] = hidden;
  }
}
