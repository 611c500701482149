// select: the k largest of each row, lower index first among equals, NaN above all, -inf never.
//
// The columns of a row may come in blocks: what was selected so far is then read before the block, as if it
// were the first columns of one row.
//
// One block of threads a row. The k-th largest is found digit by digit, eight bits at a time from the top (radix
// select): count the digits of what agrees with the digits known so far, and see in which digit the k-th
// falls. What ranks above it is taken, and of what equals it as many as are missing, from the left.
//
// Scores are handled as their bits: nothing is computed with, so nothing is rounded or flushed to zero.

constexpr int DIGIT_BITS = 8;
constexpr int DIGITS = 1 << DIGIT_BITS;
constexpr int NO_DIGIT = -1;

// An unsigned integer that orders as the score does. It is never 0.
template <typename T>
__device__ typename Format<T>::Bits rank_of(typename Format<T>::Bits bits) {
  using Bits = typename Format<T>::Bits;
  constexpr Bits SIGN = (Bits)((Bits)1 << (8 * sizeof(Bits) - 1));
  const Bits size = bits & (Bits)~SIGN;
  if (size > Format<T>::INF) return (Bits) ~(Bits)0;  // NaN
  if (size == 0) return SIGN;                         // both zeros
  return bits & SIGN ? (Bits)~bits : (Bits)(bits | SIGN);
}

// A row as it is read: the best so far, if any, then a block of scores.
template <typename T, typename Bits = typename Format<T>::Bits>
struct Row {
  static constexpr Bits MINUS_INF = (Bits)(Format<T>::INF | (Bits)1 << (8 * sizeof(Bits) - 1));
  const Bits* best;
  const int* best_indices;
  i64 kept;  // of the best
  const Bits* scores;
  i64 start;    // the index of the first score
  i64 columns;  // the best and the scores together
  Bits floor;   // what scores must rank above to be counted: others cannot be among the k best

  __device__ Bits bits(i64 column) const {
    return column < kept ? best[column] : scores[column - kept];
  }
  __device__ int index(i64 column) const {
    return column < kept ? best_indices[column] : (int)(start + column - kept);
  }
  // What an entry must rank above to be counted.
  __device__ Bits bar(i64 column) const { return column < kept ? lowest() : floor; }
  __device__ static Bits lowest() { return rank_of<T>(MINUS_INF); }
};

// What is taken of a row: all that ranks above `rank`, and the first `ties` that rank the same.
template <typename Bits>
struct Cut {
  Bits rank;
  int ties;
};

// The digit in which the k-th largest falls.
struct Pick {
  int digit;   // NO_DIGIT if there are fewer than k
  int needed;  // how many entries with this digit are to be taken
  bool whole;  // whether that is all of them
};

// By one warp: the digit of the `needed`-th largest entry, from how often each digit occurs.
__device__ void pick_digit(const int* histogram, int needed, Pick* picked) {
  constexpr int OWN = DIGITS / WARP;
  const int lane = lane_of_thread(), top = DIGITS - 1 - OWN * lane;
  int own = 0;
  for (int i = 0; i < OWN; i++) own += histogram[top - i];
  int through = own;  // entries with a digit of this lane's or larger
  for (int step = 1; step < WARP; step *= 2) {
    const int others = __shfl_up_sync(ALL_LANES, through, step);
    if (lane >= step) through += others;
  }
  if (lane == WARP - 1 && through < needed) *picked = {NO_DIGIT, 0, false};
  int above = through - own;
  if (above >= needed || needed > through) return;
  for (int i = 0; i < OWN; i++) {
    const int count = histogram[top - i];
    if (needed <= above + count) {
      *picked = {top - i, needed - above, needed - above == count};
      return;
    }
    above += count;
  }
}

// Where the k best of a row end. What ranks at most as the cut cannot be among the k best of more columns.
template <typename T, typename Bits = typename Format<T>::Bits>
__device__ Cut<Bits> find_cut(const Row<T>& row, int k) {
  __shared__ int histogram[DIGITS];
  __shared__ Pick picked;
  const int lane = lane_of_thread();
  Bits known = 0, prefix = 0;  // which bits of the k-th largest are known, and what they are
  int needed = k;
  for (int shift = 8 * (int)sizeof(Bits) - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
    for (int digit = threadIdx.x; digit < DIGITS; digit += blockDim.x) histogram[digit] = 0;
    __syncthreads();
    for (i64 start = warp_of_thread() * WARP; start < row.columns; start += blockDim.x) {
      const i64 column = start + lane;
      const Bits rank = column < row.columns ? rank_of<T>(row.bits(column)) : 0;
      int digit = NO_DIGIT;
      if (rank > row.bar(column) && (rank & known) == prefix) digit = (rank >> shift) & (DIGITS - 1);
      if (!__any_sync(ALL_LANES, digit != NO_DIGIT)) continue;  // usual, from the second digit on
      // Scores share few exponents: lanes with the same digit add to its count together.
      const unsigned peers = __match_any_sync(ALL_LANES, digit);
      if (digit != NO_DIGIT && lane == __ffs(peers) - 1)
        atomicAdd(&histogram[digit], __popc(peers));
    }
    __syncthreads();
    if (warp_of_thread() == 0) pick_digit(histogram, needed, &picked);
    __syncthreads();
    const Pick pick = picked;
    if (pick.digit == NO_DIGIT) return {row.floor, 0};
    known |= (Bits)((Bits)(DIGITS - 1) << shift);
    prefix |= (Bits)((Bits)pick.digit << shift);
    needed = pick.needed;
    // All that was counted and ranks at least as `prefix` is taken. What was not counted does not.
    if (pick.whole && prefix > row.floor) return {(Bits)(prefix - 1), 0};
    if (pick.whole && row.floor == row.lowest()) return {row.floor, 0};
  }
  return {prefix, needed};
}

// Take what the cut says, in ascending order; returns how many that are. Its shared memory is free for the
// next row once all threads have come to the barriers of `find_cut`.
template <typename T, typename Bits = typename Format<T>::Bits>
__device__ int take(const Row<T>& row, Cut<Bits> cut, Bits* values, int* indices, int* places) {
  __shared__ int above_of[MOST_WARPS], tied_of[MOST_WARPS];
  const int lane = lane_of_thread(), warp = warp_of_thread(), warps = warps_of_block();
  // Each warp has a stretch of the row: it counts what it will take, then takes it.
  const i64 stretch = ((row.columns + warps - 1) / warps + WARP - 1) / WARP * WARP;
  const i64 begin = min(row.columns, warp * stretch), end = min(row.columns, begin + stretch);
  int above = 0, tied = 0;
  for (i64 start = begin; start < end; start += WARP) {
    const i64 column = start + lane;
    const Bits rank = column < end ? rank_of<T>(row.bits(column)) : 0;
    above += __popc(__ballot_sync(ALL_LANES, rank > cut.rank));
    tied += __popc(__ballot_sync(ALL_LANES, rank == cut.rank));
  }
  if (lane == 0) {
    above_of[warp] = above;
    tied_of[warp] = tied;
  }
  __syncthreads();
  int all_above = 0, all_tied = 0;
  for (int other = 0; other < warps; other++) {
    if (other == warp) {
      above = all_above;
      tied = all_tied;
    }
    all_above += above_of[other];
    all_tied += tied_of[other];
  }
  const unsigned before = (1u << lane) - 1;
  for (i64 start = begin; start < end; start += WARP) {
    const i64 column = start + lane;
    const Bits bits = column < end ? row.bits(column) : 0;
    const Bits rank = column < end ? rank_of<T>(bits) : 0;
    const unsigned are_above = __ballot_sync(ALL_LANES, rank > cut.rank);
    const unsigned are_tied = __ballot_sync(ALL_LANES, rank == cut.rank);
    const int tied_before = tied + __popc(are_tied & before);
    if (rank > cut.rank || (rank == cut.rank && tied_before < cut.ties)) {
      const int slot = above + __popc(are_above & before) + min(tied_before, cut.ties);
      values[slot] = bits;
      indices[slot] = row.index(column);
      if (places) places[slot] = (int)column;
    }
    above += __popc(are_above);
    tied += __popc(are_tied);
  }
  return all_above + min(all_tied, cut.ties);
}

// scores (rows, columns), of which the first has the index `start`; best_values and best_indices (rows, kept), what
// was selected before; values, indices and, unless it is null, places (rows, k): the column of each slot as it
// was read, the best before the scores. What ranks at most as `floors` (rows) cannot be among the k best, if
// that many are kept; they are raised, unless they are null.
template <typename T, typename Bits = typename Format<T>::Bits>
__global__ void __launch_bounds__(MOST_WARPS* WARP, 2)
    select(const Bits* __restrict__ scores, i64 rows, i64 columns, i64 start,
           const Bits* __restrict__ best_values, const int* __restrict__ best_indices, i64 kept,
           Bits* __restrict__ floors, i64 k, Bits* __restrict__ values, int* __restrict__ indices,
           int* __restrict__ places) {
  for (i64 i = blockIdx.x; i < rows; i += gridDim.x) {
    const Bits floor = kept == k && floors ? floors[i] : Row<T>::lowest();
    const Row<T> row = {best_values + i * kept, best_indices + i * kept, kept,
                        scores + i * columns,   start,                   kept + columns, floor};
    const Cut<Bits> cut = find_cut(row, (int)k);
    const i64 first = i * k;
    const int count = take(row, cut, values + first, indices + first, places ? places + first : 0);
    for (i64 slot = first + count + (i64)threadIdx.x; slot < first + k; slot += blockDim.x) {
      values[slot] = Row<T>::MINUS_INF;
      indices[slot] = -1;
      if (places) places[slot] = -1;
    }
    if (floors && threadIdx.x == 0) floors[i] = cut.rank;
  }
}
