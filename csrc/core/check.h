// Errors: one exception type per Python exception that the bindings raise.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace fastshape {

struct TypeError : std::runtime_error {  // not a tensor, wrong dtype
  using std::runtime_error::runtime_error;
};
struct ValueError : std::runtime_error {  // shape, range, device mismatch
  using std::runtime_error::runtime_error;
};
struct RuntimeError : std::runtime_error {  // no CUDA in this build, a CUDA failure
  using std::runtime_error::runtime_error;
};
struct NotImplementedError : std::runtime_error {  // the message names what does exist
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string concatenate(Parts&&... parts) {
  std::ostringstream out;
  (out << ... << std::forward<Parts>(parts));
  return out.str();
}

}  // namespace fastshape

#define FASTSHAPE_CHECK_TYPE(condition, ...)                                               \
  do {                                                                                     \
    if (!(condition)) throw ::fastshape::TypeError(::fastshape::concatenate(__VA_ARGS__)); \
  } while (false)
#define FASTSHAPE_CHECK_VALUE(condition, ...)                                               \
  do {                                                                                      \
    if (!(condition)) throw ::fastshape::ValueError(::fastshape::concatenate(__VA_ARGS__)); \
  } while (false)
#define FASTSHAPE_FAIL_RUNTIME(...) \
  throw ::fastshape::RuntimeError(::fastshape::concatenate(__VA_ARGS__))
#define FASTSHAPE_FAIL_NOT_IMPLEMENTED(...) \
  throw ::fastshape::NotImplementedError(::fastshape::concatenate(__VA_ARGS__))
