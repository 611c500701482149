// Runs kernels on the CPU: reads launches from standard input, answers with what they leave in their arrays.
//
// All numbers are 64-bit integers. A launch is: the kernel's name, its length before it; blocks; threads; the
// order of threads; how many arguments; each argument, as its size in bytes and its contents, or as INTEGER
// and the integer. The answer is: 0 and the contents of all arrays, or an error code and a message, its length
// before it.
#include "kernels.cu"  // the source, as a whole

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

constexpr i64 INTEGER = -1;

static i64 read_integer() {
  i64 integer;
  if (fread(&integer, sizeof integer, 1, stdin) != 1) exit(0);
  return integer;
}

static void write_integer(i64 integer) { fwrite(&integer, sizeof integer, 1, stdout); }

struct Argument {
  i64 size, integer;
  void* array = nullptr;  // of exactly its size, so that AddressSanitizer sees what lies beyond
  void* value() { return size == INTEGER ? (void*)&integer : (void*)&array; }
};

template <class... A, size_t... I>
static int start(void (*kernel)(A...), dim3 grid, dim3 block, unsigned order,
                 std::vector<Argument>& arguments, std::index_sequence<I...>) {
  return shim::launch(grid, block, 0, order, kernel,
                      *(std::remove_cv_t<A>*)arguments[I].value()...);
}

template <class... A>
static int start(void (*kernel)(A...), dim3 grid, dim3 block, unsigned order,
                 std::vector<Argument>& arguments) {
  if (arguments.size() != sizeof...(A)) return shim::INVALID_VALUE;
  return start(kernel, grid, block, order, arguments, std::index_sequence_for<A...>{});
}

int main() {
  for (;;) {
    std::string name(read_integer(), 0);
    fread(name.data(), 1, name.size(), stdin);
    const dim3 grid(read_integer()), block(read_integer());
    const unsigned order = read_integer();
    std::vector<Argument> arguments(read_integer());
    for (Argument& argument : arguments) {
      argument.size = read_integer();
      if (argument.size == INTEGER) {
        argument.integer = read_integer();
      } else {
        argument.array = malloc(argument.size);
        fread(argument.array, 1, argument.size, stdin);
      }
    }
    int code = shim::INVALID_VALUE;
#define KERNEL(...) \
  if (name == #__VA_ARGS__) code = start(__VA_ARGS__, grid, block, order, arguments);
#include "instances.inc"
    write_integer(code);
    if (code) {
      const std::string error = shim::error();
      write_integer(error.size());
      fwrite(error.data(), 1, error.size(), stdout);
    }
    for (Argument& argument : arguments) {
      if (argument.size == INTEGER) continue;
      if (!code) fwrite(argument.array, 1, argument.size, stdout);
      free(argument.array);
    }
    fflush(stdout);
  }
}
